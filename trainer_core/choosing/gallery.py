"""The pictures that checkpoints are compared by: those of the run's previews, and those drawn for it, kept beside.

`choosing/step_00000250/<key>.png` in the run's folder, `choosing/base/` for those without the LoRA; the key is a digest
of all that the picture depends on.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.cache import key_of
from ..data.header import opened
from ..data.images import load_image, png_bytes
from ..errors import AdapterError, DatasetError
from ..files import write_atomically
from ..reading import parse_json
from ..safetensors_file import read_header
from ..training.previews import negative_text
from .record import BASE, model_text

if TYPE_CHECKING:
    from PIL import Image

    from ..config import JobConfig
    from ..runs.checkpoints import Checkpoint
    from ..runs.run_folder import RunFolder
    from ..sampling.sampler import SamplerSettings
    from .prompts import Picture

FOLDER = "choosing"


class Gallery:
    """Pictures of one run, as one job draws them."""

    def __init__(self, run: RunFolder, job: JobConfig, settings: SamplerSettings) -> None:
        self._run, self._job, self._settings = run, job, settings
        self._drawn_by = key_of(model_text(job.model), asdict(settings), negative_text(job))
        self._previews: dict[int, dict[tuple[str, str, str], Path]] = {}

    def find(self, picture: Picture, digest: str, checkpoint: Checkpoint) -> Image.Image | None:
        """A picture that is there already; None if it has to be drawn.

        Args:
            digest: of the checkpoint, or `BASE`: then the previews before the first step will do.
            checkpoint: of the base, any: it knows how the run's previews were drawn.
        """
        paths = [self._path(picture, digest, checkpoint)]
        if self._settings.frames == 1 and self._job.sample.frames in (None, 1):
            step = 0 if digest == BASE else checkpoint.step
            if step not in self._previews:
                self._previews[step] = self._previews_of(step, checkpoint)
            paths.append(
                self._previews[step].get((picture.prompt, str(picture.seed), picture.controls.names), paths[0])
            )
        for path in paths:
            with suppress(DatasetError):
                if path.is_file():
                    return load_image(path)
        return None

    def keep(self, picture: Picture, digest: str, checkpoint: Checkpoint, image: Image.Image) -> None:
        """Keeps a drawn picture.

        Raises:
            SaveError: if it cannot be written.
        """
        facts = {"prompt": picture.prompt, "seed": str(picture.seed)}
        write_atomically(
            self._path(picture, digest, checkpoint), png_bytes(image, facts), durably=False, inside=self._run.path
        )

    def forget(self, steps: Collection[int]) -> None:
        """Deletes pictures of checkpoints that are not there any more; `steps` are."""
        for folder in (self._run.path / FOLDER).glob("step_*"):
            if folder.name[5:].isdecimal() and int(folder.name[5:]) not in steps:
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, picture: Picture, digest: str, checkpoint: Checkpoint) -> Path:
        folder = BASE if digest == BASE else f"step_{checkpoint.step:08d}"
        key = key_of(digest, self._drawn_by, picture.prompt, picture.seed, *picture.controls.files)
        return self._run.path / FOLDER / folder / f"{key[:32]}.png"

    def _previews_of(self, step: int, checkpoint: Checkpoint) -> dict[tuple[str, str, str], Path]:
        """The run's own previews of a step, by prompt, seed and control images, if they were drawn as we draw."""
        job = self._job
        weights = ("raw" if job.train.ema_decay is None else "ema") if job.save.weights == "auto" else job.save.weights
        if _sample_of(checkpoint) != job.sample.model_dump(mode="json") or (step == 0 and job.adapter.warm_start):
            return {}
        found = {}
        for path in self._run.sample_paths(step):
            with suppress(OSError, ValueError, SyntaxError), opened(path) as image:
                facts = image.info
                same = image.size == (self._settings.width, self._settings.height) and facts.get("prompt") is not None
                if same and (step == 0 or facts.get("weights") == weights) and not path.with_suffix(".webp").exists():
                    found[facts["prompt"], facts["seed"], facts.get("controls", "")] = path
        return found


def _sample_of(checkpoint: Checkpoint) -> object:
    """How the run drew previews when it saved a checkpoint; None if that is not known."""
    with suppress(AdapterError, KeyError, TypeError, ValueError):
        return parse_json(read_header(checkpoint.state)["__metadata__"]["config"])["sample"]
    return None
