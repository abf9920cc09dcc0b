"""The nodes: widgets in, core calls out, one file for each. Only `host.py` touches ComfyUI beyond its node API."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import shutdown
from .caption_with_trigger import CaptionWithTrigger
from .configure_lora import ConfigureLoRA
from .load_base import LoadBase
from .load_dataset import LoadDataset
from .load_run import LoadRun
from .preset import Preset
from .preview_samples import PreviewSamples
from .quantize_base import QuantizeBase
from .regularization import Regularization
from .routes import table
from .sample_settings import SampleSettings
from .save_checkpoint import SaveCheckpoint
from .train_lora import TrainLoRA
from .training_options import TrainingOptions

NODES: list[type[io.ComfyNode]] = [
    LoadDataset,
    CaptionWithTrigger,
    ConfigureLoRA,
    QuantizeBase,
    Preset,
    TrainingOptions,
    Regularization,
    SampleSettings,
    TrainLoRA,
    SaveCheckpoint,
    PreviewSamples,
    LoadBase,
    LoadRun,
]


class FoundryExtension(ComfyExtension):
    """What ComfyUI registers."""

    async def on_load(self) -> None:
        table.register()
        shutdown.SHUTDOWN.install()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
