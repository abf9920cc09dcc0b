"""What a job is: the one source of fields, defaults, limits and descriptions, for YAML, nodes and tooltips.

Unknown keys are errors that name the nearest known one. A description is what a user reads in a tooltip, so it says
what the setting does and when to change it.
"""

from .data import CacheConfig, DatasetConfig
from .job import JobConfig, dump_job, load_job, plain_name, resolved, resolved_model
from .memory import MemoryConfig
from .model import LINKS, AdapterConfig, ModelConfig, Precision, Quantization
from .model_files import SOURCE, register_model_files
from .objective import RegularizationConfig, ValidationConfig
from .output import SampleConfig, SaveConfig
from .section import Section, description, validated
from .train import TimestepType, TrainConfig

__all__ = [
    "LINKS",
    "SOURCE",
    "AdapterConfig",
    "CacheConfig",
    "DatasetConfig",
    "JobConfig",
    "MemoryConfig",
    "ModelConfig",
    "Precision",
    "Quantization",
    "RegularizationConfig",
    "SampleConfig",
    "SaveConfig",
    "Section",
    "TimestepType",
    "TrainConfig",
    "ValidationConfig",
    "description",
    "dump_job",
    "load_job",
    "plain_name",
    "register_model_files",
    "resolved",
    "resolved_model",
    "validated",
]
