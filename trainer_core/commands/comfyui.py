"""`--comfyui`: the same command with the models of a ComfyUI.

What opens them is part of the pack and imports the trainer relatively, as it does inside ComfyUI. So the command runs
in the pack's own copy of the trainer; this one only starts it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import ConfigError, FoundryError
from . import base_options

if TYPE_CHECKING:
    from ..config import ModelConfig

_PACK = "lora_foundry_pack"
_ROOT = Path(__file__).parents[2]


def run_with_comfyui(args: argparse.Namespace, arguments: Sequence[str]) -> int | None:
    """Runs a command with the ComfyUI that is named, or with the usual one if its base is not found otherwise.

    Args:
        args: with `comfyui` and `bases`, one of `BASES`.

    Returns:
        The command's exit code; None if it is to run here.

    Raises:
        ConfigError: if the pack around this trainer is not there.
    """
    if __name__.startswith(f"{_PACK}."):
        return None
    models = _models(args)
    folder: Path | None = args.comfyui
    if folder is None and models:
        from ..api import can_find

        folder = None if all(map(can_find, models)) else usual_folder()
    if folder is None:
        return None
    devices = {model.device for model in models}
    start = partial(_library().start, folder.expanduser().absolute(), devices.pop() if len(devices) == 1 else "auto")
    code: int = import_module(f"{_PACK}.trainer_core.cli").main(arguments, start)
    return code


def usual_folder() -> Path | None:
    """The ComfyUI that COMFYUI_DIR names (none if that is empty), or the one whose custom_nodes/ holds this pack."""
    given = os.environ.get("COMFYUI_DIR")
    if given is not None:
        return Path(given) if given else None
    return _ROOT.parents[1] if _ROOT.parent.name == "custom_nodes" else None


def _library() -> ModuleType:
    """The pack's `nodes.comfy_models.library`, without the list of nodes, which needs ComfyUI's server.

    In an installed package, `comfy_models` lies beside the trainer.
    """
    holders = [folder for folder in (_ROOT / "nodes", _ROOT) if (folder / "comfy_models" / "library.py").is_file()]
    if not holders:
        raise ConfigError(
            f"--comfyui: {_ROOT} holds LoRA Foundry's trainer alone, without what opens ComfyUI's models. Clone its "
            "repository, and install that: pip install -e FOLDER"
        )
    for name, folder in ((_PACK, _ROOT), (f"{_PACK}.nodes", holders[0])):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    return import_module(f"{_PACK}.nodes.comfy_models.library")


def _models(args: argparse.Namespace) -> list[ModelConfig]:
    """The bases that a command works with; of what cannot be read, the command itself says what is wrong."""
    try:
        return list(BASES[args.bases](args))
    except FoundryError:
        return []


def _of_job(args: argparse.Namespace) -> Iterable[ModelConfig]:
    from ..config import load_job

    yield load_job(args.job).model


def _of_run(args: argparse.Namespace) -> Iterable[ModelConfig]:
    from ..api import find_run

    return _of_job(args) if args.job else [find_run(args.run, args.runs).job().model]


def _of_lora(args: argparse.Namespace) -> Iterable[ModelConfig]:
    from ..api import find_lora

    yield find_lora(args.lora, args.runs, base=base_options(args)).model


def _of_chosen(args: argparse.Namespace) -> Iterable[ModelConfig]:
    from ..api import find_lora

    yield find_lora(args.run, args.runs, base=base_options(args)).model


def _of_queue(_args: argparse.Namespace) -> Iterable[ModelConfig]:
    from ..api import RunFolder, waiting_alone

    return [RunFolder.open(one.run).job().model for _, one, problem in waiting_alone(()) if problem is None]


def _none(_args: argparse.Namespace) -> Iterable[ModelConfig]:
    return ()


BASES: dict[str, Callable[[argparse.Namespace], Iterable[ModelConfig]]] = {
    "job": _of_job,
    "run": _of_run,
    "lora": _of_lora,
    "chosen": _of_chosen,
    "queue": _of_queue,
    "none": _none,
}
"""How a command names its bases. `none` begins with ComfyUI only if it is told to."""
