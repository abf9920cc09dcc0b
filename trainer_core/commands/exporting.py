"""`export`: a LoRA for other tools than ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import ModelConfig
from ..errors import ConfigError, RunError
from ..runs.checkpoints import Checkpoint
from ..runs.run_folder import RunFolder
from . import OK
from .pictures import base_options, family_of_file, job_of_file
from .runs import find_lora
from .terminal import print_json, quiet_libraries, say


def export(args: argparse.Namespace) -> int:
    """Writes a LoRA as diffusers, PEFT or sd-scripts read it."""
    from ..adapters.export_as import export_as

    lora, model, name = _subject(args)
    quiet_libraries()
    path = export_as(args.to, lora, model.but(**base_options(args, model)), name, args.out)
    if args.json:
        print_json({"path": str(path), "to": args.to, "lora": str(lora)})
    else:
        say(path)
    return OK


def _subject(args: argparse.Namespace) -> tuple[Path, ModelConfig, str]:
    """The LoRA file, its base, and what it is called."""
    found = find_lora(args.lora, args.runs)
    if isinstance(found, Path):
        from ..adapters.export import describe_lora

        if args.step is not None:
            raise ConfigError("--step: chooses a checkpoint of a run; this is a file")
        metadata, name = describe_lora(found)["metadata"], found.name.removesuffix(".safetensors")
        if args.base is None:
            return found, job_of_file(found, metadata).model, name
        return found, ModelConfig().but(family=args.family or family_of_file(metadata)), name
    checkpoint = _checkpoint(found, args.step or "latest")
    numbered = args.step not in (None, "latest")
    return checkpoint.lora, found.job().model, f"{found.name}_{checkpoint.step}_steps" if numbered else found.name


def _checkpoint(run: RunFolder, which: str | int) -> Checkpoint:
    """A run's checkpoint: that of a step, the "best" or the "latest".

    Raises:
        RunError: if there is none; the message says what there is.
    """
    steps = {found.step: found for found in run.checkpoints()}
    if not steps:
        raise RunError(f"{run.path} has no checkpoint yet, so there is no LoRA to export")
    if which == "latest":
        return steps[max(steps)]
    there = f"there are: {', '.join(map(str, sorted(steps)))}"
    if which == "best":
        best = run.best()
        if best is None:
            raise RunError(f"{run.path}: no checkpoint was validated, so none is known to be the best; {there}")
        return best
    if which not in steps:
        raise RunError(f"{run.path}: has no checkpoint of step {which}; {there}")
    return steps[int(which)]
