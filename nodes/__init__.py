"""The nodes: widgets in, core calls out, one file for each. Only `host.py` touches ComfyUI beyond its node API."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from . import console, failures, shutdown
from .base_model import BaseModel
from .caption_dataset import CaptionDataset
from .caption_drafts import CaptionDrafts
from .caption_with_trigger import CaptionWithTrigger
from .choose_checkpoint import ChooseCheckpoint
from .configure_lora import ConfigureLoRA
from .dataset_images import DatasetImages
from .load_base import LoadBase
from .load_dataset import LoadDataset
from .load_run import LoadRun
from .preset import Preset
from .preview_samples import PreviewSamples
from .regularization import Regularization
from .resume_run import ResumeRun
from .routes import table
from .sample_settings import SampleSettings
from .save_checkpoint import SaveCheckpoint
from .train_lora import TrainLoRA
from .training_options import TrainingOptions

NODES: list[type[io.ComfyNode]] = [
    LoadDataset,
    CaptionWithTrigger,
    ConfigureLoRA,
    BaseModel,
    Preset,
    TrainingOptions,
    Regularization,
    SampleSettings,
    TrainLoRA,
    SaveCheckpoint,
    PreviewSamples,
    LoadBase,
    LoadRun,
    ResumeRun,
    ChooseCheckpoint,
    DatasetImages,
    CaptionDataset,
    CaptionDrafts,
]


class FoundryExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def on_load(self) -> None:
        table.register()
        shutdown.SHUTDOWN.install()
        logging.getLogger().addFilter(failures.OneLine())
        console.quiet_libraries()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
