"""Everything that we ask of ComfyUI beyond its node API. No other file of the pack touches ComfyUI's own modules."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ..trainer_core.adapters.export import export_lora
from ..trainer_core.config import plain_name
from ..trainer_core.errors import ConfigError, DatasetError, RunError
from ..trainer_core.training.run_folder import RunFolder

SHIPPED_DATASET = Path(__file__).parents[1] / "trainer_core" / "embedded" / "demo_dataset"
_PREVIEW_PIXELS = 512

# folders


def runs_root() -> Path:
    """Where runs live."""
    return Path(folder_paths.get_output_directory()) / "lora_foundry"


def run_folder(path: str) -> RunFolder:
    """The run that a link names.

    Raises:
        RunError: if it is none of ours: a prompt sent to the server could name any folder.
    """
    if not Path(path).resolve().is_relative_to(runs_root().resolve()):
        raise RunError(f"{path}: is no run of this ComfyUI; runs are in {runs_root()}")
    return RunFolder.open(Path(path))


def collected_datasets_root() -> Path:
    """Where images that came over links are written, so that a run can be resumed without the graph."""
    return Path(folder_paths.get_output_directory()) / "lora_foundry_datasets"


def dataset_folder(text: str) -> Path:
    """The folder of a data set that a user named: as `input_folder`, or `demo` for the one that we ship.

    Raises:
        DatasetError: for an empty name, or a relative one that leads out of the input folder.
    """
    if not _bare(text):
        raise DatasetError("Load Dataset: `folder` is empty. Name a folder of images, or write `demo`")
    folder = input_folder(text)
    return SHIPPED_DATASET if _bare(text) == "demo" and not folder.exists() else folder


def input_folder(text: str) -> Path:
    """A folder that a user named: absolute, or below ComfyUI's input folder.

    Raises:
        DatasetError: for a relative one that leads out of the input folder.
    """
    inputs = Path(folder_paths.get_input_directory()).resolve()
    try:
        name = Path(_bare(text)).expanduser()
    except RuntimeError as error:  # the home of a user that there is not
        raise DatasetError(f"Load Dataset: {text!r}: {error}") from None
    folder = (inputs / name).resolve()
    if not name.is_absolute() and not folder.is_relative_to(inputs):
        raise DatasetError(f"Load Dataset: {text!r} leads out of ComfyUI's input folder. Give the whole path instead")
    return folder


def _bare(text: str) -> str:
    return text.strip().strip('"')


def in_output(path: Path) -> dict[str, str]:
    """A file of the output folder as the browser asks for it."""
    relative = path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve())
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}


# LoRA files


def lora_names() -> list[str]:
    """The LoRA files that ComfyUI's loaders list."""
    return list(folder_paths.get_filename_list("loras"))


def lora_file(name: str) -> Path:
    """The file of a listed name."""
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def export_to_output(source: Path, name: str) -> tuple[str, Path]:
    """Copies a LoRA to `output/loras/`; gives its name in ComfyUI's lists, and its path."""
    return _export(source, Path(folder_paths.get_output_directory()) / "loras", name)


def export_to_models(source: Path, name: str) -> tuple[str, Path]:
    """Copies a LoRA to `models/loras/`; gives its name in ComfyUI's lists, and its path."""
    return _export(source, Path(folder_paths.get_folder_paths("loras")[0]), name)


def _export(source: Path, folder: Path, name: str) -> tuple[str, Path]:
    # ComfyUI finds a LoRA by name in the first of several folders that has it, and its loader never reads a path twice:
    # only a name that is new in all of them surely means this file
    try:
        base = plain_name(name.strip().removesuffix(".safetensors"))
    except ValueError as error:
        raise ConfigError(f"name: {error}") from None
    roots = [Path(root) for root in folder_paths.get_folder_paths("loras")]
    fresh, count = base, 1
    while any((root / f"{fresh}.safetensors").exists() for root in roots):
        count += 1
        fresh = f"{base}_{count}"
    path = export_lora(source, folder, fresh)
    PromptServer.instance.send_sync("lora_foundry.saved", {"lora_name": path.name})
    return path.name, path


# the executing node


def progress_text(text: str) -> None:
    """Shows a text under the node that is executing."""
    context = get_executing_context()
    if context is not None:
        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)


def shown_text(text: str) -> dict[str, list[str]]:
    """Shows a text under the node now, and as part of its result again whenever that comes from the cache."""
    progress_text(text)
    return {"text": [text]}


def send_to_node(event: str, data: dict[str, Any]) -> None:
    """Sends an event of ours to the page; `node` says which node is executing."""
    context = get_executing_context()
    if context is not None:
        message = {"node": context.node_id, "prompt_id": context.prompt_id, **data}
        PromptServer.instance.send_sync(f"lora_foundry.{event}", message, PromptServer.instance.client_id)


class ProgressBar:
    """The progress bar of the executing node. Updating it raises ComfyUI's interruption if the user cancelled."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)

    def update(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        """Sets the bar, and shows a picture on the node."""
        preview = ("JPEG", picture, _PREVIEW_PIXELS) if picture is not None else None
        self._bar.update_absolute(done, max(total, 1), preview)


def raise_if_interrupted() -> None:
    """Raises ComfyUI's interruption if the user cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def interrupted() -> bool:
    """For work of the core that asks whether to stop: raises ComfyUI's interruption instead of answering yes."""
    raise_if_interrupted()
    return False


def no_output() -> Any:
    """An output that keeps the nodes behind it from running, without an error."""
    return ExecutionBlocker(None)


# models and memory


def device() -> str:
    """ComfyUI's device as the core names it, so that `--cpu` and `--cuda-device` hold for training too."""
    return str(comfy.model_management.get_torch_device())


def free_vram() -> None:
    """Moves ComfyUI's models out of the GPU; they come back when they are needed."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def to_intermediate(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor where and as ComfyUI keeps what goes over links."""
    return tensor.to(comfy.model_management.intermediate_device(), torch.float32)


def load_diffusion_model(file: Path, shift: float | None) -> Any:
    """A MODEL from a denoiser's file.

    Args:
        shift: the fixed shift of the model's noise schedule, which the file does not tell; None leaves ComfyUI's own.
    """
    model = comfy.sd.load_diffusion_model(str(file))
    if shift is not None:
        model.add_object_patch("model_sampling", _flow_sampling(model, shift))
    return model


def _flow_sampling(model: Any, shift: float) -> Any:
    """What the stock node ModelSamplingSD3 sets, with the time scale that this model was detected with."""

    class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=model.model.model_config.sampling_settings.get("multiplier", 1000))
    return sampling
