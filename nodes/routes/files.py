"""Pictures, videos and LoRA files of runs, each named as a listing named it."""

from __future__ import annotations

from ...trainer_core.api import checkpoint_file, sample_file
from ...trainer_core.errors import RunError
from .asked import Asked, Refused, Route
from .runs import run_of
from .sending import File, Picture
from .thumbnails import thumbnail


def _sample(asked: Asked) -> File | Picture:
    run = run_of(asked)
    try:
        path = sample_file(run, asked.number("step"), asked.parts["file"])
    except RunError as error:
        raise Refused(404, str(error)) from None
    return thumbnail(path, asked.number("size")) if "size" in asked.query else File(path)


def _download(asked: Asked) -> File:
    run, step = run_of(asked), asked.number("step")
    try:
        path = checkpoint_file(run, step, asked.parts["file"])
    except RunError as error:
        raise Refused(404, str(error)) from None
    return File(path, download=f"{run.name}_{step}_steps{path.stem.removeprefix('lora')}.safetensors")


ROUTES = [
    Route("GET", "runs/{run}/samples/{step}/{file}", _sample),
    Route("GET", "runs/{run}/checkpoints/{step}/{file}", _download),
]
