"""ComfyUI as a library, for the command line: its models, folders of models and tokenizers, without its server."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from ...trainer_core.config import SOURCE, register_model_files
from ...trainer_core.errors import ConfigError
from ...trainer_core.families.device import pick_device
from ...trainer_core.families.registry import register_provider
from . import tokenizers

_USUAL = {
    SOURCE: ("checkpoints", "diffusion_models"),
    "model_low_noise": ("diffusion_models", "checkpoints"),
    "vae": ("vae",),
    "training_adapter": ("loras",),
    "clip_vision": ("clip_vision",),
}
"""Part of a base (`base.SPEC`) → where it lies; text encoders are the others."""
_FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras")
"""ComfyUI's folders that a base's files lie in; it knows `unet` and `clip` as names of the second and third."""


def start(folder: Path, device: str) -> None:
    """Makes ComfyUI's models known to the trainer. Once for each process.

    Args:
        folder: ComfyUI's own.
        device: as in `model.device`; ComfyUI works on the same one.

    Raises:
        ConfigError: if this is no ComfyUI, or cannot be used from this Python.
    """
    if not (folder / "comfy" / "options.py").is_file():
        raise ConfigError(f"{folder}: is no ComfyUI. Name the folder that holds its main.py and its folder `comfy`")
    sys.path.insert(0, str(folder))  # first, as when ComfyUI itself runs: it has modules called `nodes` and `utils`
    try:
        _choose(device)
        _add_folders(folder)
        tokenizers.register(folder / "comfy")
        register_model_files(find)
        register_provider(import_module(".provider", __package__).ComfyModels())
    except ImportError as error:
        raise ConfigError(
            f"{folder}: ComfyUI cannot be used from this Python ({error}). Install what it needs beside LoRA Foundry: "
            f'{sys.executable} -m pip install -r "{folder / "requirements.txt"}"'
        ) from error


def find(part: str, name: str) -> Path | None:
    """A file of ComfyUI's folders by its name there, or with the folder before it (`checkpoints/a.safetensors`).

    Args:
        part: of the base, or `SOURCE`; its folders are looked in first.
    """
    import folder_paths

    if Path(name).is_absolute():
        return None
    before, _, inner = name.replace("\\", "/").partition("/")
    first = _USUAL.get(part, ("text_encoders",))
    places = [(folder_paths.map_legacy(before), inner)] if folder_paths.map_legacy(before) in _FOLDERS else []
    places += [(folder, name) for folder in dict.fromkeys((*first, *_FOLDERS))]
    return next((Path(path) for place in places if (path := folder_paths.get_full_path(*place))), None)


def _choose(device: str) -> None:
    """ComfyUI chooses its device by its command line, or takes torch's current one."""
    import torch

    chosen = pick_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    given, sys.argv = sys.argv, ["main.py", *(["--cpu"] if chosen.type == "cpu" else [])]
    try:
        import_module("comfy.options").enable_args_parsing()
        import_module("comfy.cli_args")  # reads them when it is imported
    finally:
        sys.argv = given


def _add_folders(folder: Path) -> None:
    """Those of extra_model_paths.yaml, which only ComfyUI's main.py reads."""
    extra = folder / "extra_model_paths.yaml"
    if extra.is_file():
        import_module("utils.extra_config").load_extra_path_config(str(extra))
