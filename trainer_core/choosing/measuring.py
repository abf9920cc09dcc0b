"""The work behind a choice: losses and pictures of those checkpoints that lack them.

Whatever is measured or drawn is kept at once, so that nothing of it is lost when the work is stopped. Checkpoints of a
run that is at work may be deleted meanwhile: each is read as a whole before it is used, and left out if it is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from ..data.cache import CACHE_FOLDER, TensorCache
from ..data.clips.decode import first_picture
from ..errors import AdapterError, ConfigError, DatasetError, TrainingError, first_line
from ..families.device import is_out_of_memory, release_memory
from ..families.registry import open_base
from ..randomness import permutation
from .comparing import Comparison
from .embedding import embedding_of
from .gallery import Gallery
from .prompts import Data, Picture, pictures_of, read_data
from .record import BASE, Record, write_record
from .session import Session, sampling_of

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from ..config import JobConfig
    from ..data.progress import Progress
    from ..families.base import Base
    from ..runs.checkpoints import Checkpoint
    from ..runs.run_folder import RunFolder

_MOST = 64
"""Training pictures that are compared with."""


class Measuring:
    """One call's work on a run."""

    def __init__(
        self, run: RunFolder, job: JobConfig, record: Record, checkpoints: dict[str, Checkpoint], progress: Progress
    ) -> None:
        """What is found goes into `record`, and checkpoints that are gone leave `checkpoints`."""
        self._run, self._job, self._record, self._checkpoints = run, job, record, checkpoints
        self._progress = progress
        self._first = next(iter(checkpoints.values()))
        self._pictures: list[Picture] = []
        self.drawn = 0

    def measure(
        self,
        losses: Collection[str],
        compared: Collection[str],
        count: int,
        prompts: Sequence[str],
        vision: Path | None,
    ) -> None:
        """Measures what is lacking.

        Args:
            losses: digests of the checkpoints, or `BASE`, whose held-out loss is lacking.
            compared: those whose pictures were not compared yet.
            count: pictures with the trigger, and as many without.
            prompts: in place of the previews'.
            vision: compares pictures; None: the data's own statistics do.

        Raises:
            FoundryError: if base or data cannot be used.
        """
        cache = TensorCache(self._run.path.parent / CACHE_FOLDER)
        with _explained(), torch.inference_mode(False):
            with closing(open_base(self._job.model)) as base:
                base.packed_cache = cache
                device = base.device
                data, problem = read_data(self._job, base.spec)
                if problem and losses:
                    self._record.held_out.notes = [f"Held-out loss is not measured: {problem}."]
                    self._record.held_out.values |= {one: {} for one in losses}
                    losses = ()
                training = self._ask(base, data, problem, count, prompts) if compared else []
                gallery = Gallery(self._run, self._job, sampling_of(self._job, base))
                lacking = {one: self._lacking(gallery, one) for one in (BASE, *self._checkpoints) if compared}
                if losses or any(lacking.values()):
                    self._visit(base, cache, gallery, lacking, losses)
            release_memory(device)
            if self._pictures:
                self._compare(gallery, training, vision, device, compared)
                release_memory(device)
            gallery.forget([one.step for one in self._checkpoints.values()])

    def _ask(
        self, base: Base, data: Data, problem: str | None, count: int, prompts: Sequence[str]
    ) -> list[Image.Image]:
        """Decides what is drawn; gives the training pictures that it is compared with."""
        job, part = self._job, self._record.pictures
        part.notes = []
        try:
            self._pictures = pictures_of(job, base.spec, data, count, prompts)
        except (ConfigError, DatasetError) as error:
            problem = str(error)
        if not self._pictures:
            why = problem or "neither the job's previews nor its captions say what to draw; --prompt does"
            part.notes.append(f"Leak, likeness and variety are not measured: {why}.")
            part.values = {one: {} for one in (BASE, *self._checkpoints)}
            self._record.embedding, self._record.count = None, 0
        elif not job.preview_trigger:
            part.notes.append("Leak is not measured: without a trigger, the LoRA is meant to act on every prompt.")
        training = self._training(data)
        if self._pictures and not training:
            part.notes.append(
                f"Likeness is not measured: there are no training pictures to read ({problem or 'none'})."
            )
        return training

    def _training(self, data: Data) -> list[Image.Image]:
        items = [(one, dataset) for dataset, items in data if dataset.role == "train" for one in items]
        chosen = [items[k] for k in sorted(permutation(len(items), "choosing")[:_MOST])]
        return [first_picture(item.path, dataset.background) for item, dataset in chosen]

    def _lacking(self, gallery: Gallery, digest: str) -> list[Picture]:
        """The pictures of a checkpoint that have to be drawn."""
        return [one for one in self._pictures if gallery.find(one, digest, self._of(digest)) is None]

    def _visit(
        self,
        base: Base,
        cache: TensorCache,
        gallery: Gallery,
        lacking: dict[str, list[Picture]],
        losses: Collection[str],
    ) -> None:
        """Goes through the checkpoints, and through what each lacks."""
        todo = [one for one in (BASE, *self._checkpoints) if one in losses or lacking.get(one)]
        wanted = list(dict.fromkeys(one for several in lacking.values() for one in several))
        settings = sampling_of(self._job, base)
        session = Session(self._job, base, cache, settings, wanted, bool(losses), self._progress)
        for number, digest in enumerate(todo):
            checkpoint = self._of(digest)
            what = f"{{}} {'the base' if digest == BASE else f'step {checkpoint.step}'} ({number + 1} of {len(todo)})"
            if digest != BASE and not self._loaded(session, digest):
                continue
            with session.base_alone() if digest == BASE else nullcontext():
                if digest in losses:
                    loss = session.held_out_loss(what.format("measuring"))
                    self._record.held_out.values[digest] = {"held_out": loss}
                    write_record(self._run, self._record, self._checkpoints)
                for picture, image in session.draw(lacking.get(digest, []), what.format("drawing")):
                    gallery.keep(picture, digest, checkpoint, image)
                    self.drawn += 1

    def _loaded(self, session: Session, digest: str) -> bool:
        """Whether a checkpoint is in the adapter now; one that is gone leaves the choice."""
        checkpoint = self._checkpoints[digest]
        try:
            session.load(checkpoint)
        except AdapterError as error:
            if all(file.is_file() for file in checkpoint.loras):
                raise
            self._record.notes.append(f"Step {checkpoint.step} is left out: it was deleted meanwhile ({error}).")
            del self._checkpoints[digest]
            return False
        return True

    def _compare(
        self,
        gallery: Gallery,
        training: list[Image.Image],
        vision: Path | None,
        device: torch.device,
        compared: Collection[str],
    ) -> None:
        """Compares the pictures, which are all there now."""
        self._progress("comparing pictures", 0, 1)

        def drawn_by(digest: str) -> dict[Picture, Image.Image]:
            found = {one: gallery.find(one, digest, self._of(digest)) for one in self._pictures}
            return {one: image for one, image in found.items() if image is not None}

        by_base = drawn_by(BASE)
        embedding = embedding_of(vision, training or list(by_base.values()), device)
        comparison = Comparison(embedding, training, by_base)
        done = [one for one in (BASE, *self._checkpoints) if one in compared]
        for number, digest in enumerate(done):
            self._progress("comparing pictures", number, len(done))
            self._record.pictures.values[digest] = comparison.of(by_base if digest == BASE else drawn_by(digest))
        self._record.embedding, self._record.count = embedding.name, len(self._pictures)
        write_record(self._run, self._record, self._checkpoints)

    def _of(self, digest: str) -> Checkpoint:
        """The checkpoint of a digest; of the base any, which knows how the run drew previews."""
        return self._checkpoints.get(digest, self._first)


@contextmanager
def _explained() -> Iterator[None]:
    """A lack of memory in words."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"memory is not enough to measure checkpoints ({first_line(error)}). Wait until no run trains on the "
            "device; --no-draw measures what needs no pictures"
        ) from None
