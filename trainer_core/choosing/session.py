"""A run's base in memory with its adapter, into which one checkpoint after the other is put.

It is held as in training, so what could be trained can be measured and drawn: bases of several experts, adapted text
encoders, streamed layers, and models that a host has loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ..adapters.parsing import for_roots, parse
from ..data.prepare import PreparedData
from ..memory.settings import MemorySettings
from ..safetensors_file import read_tensors
from ..sampling.animation import frames_of
from ..sampling.controls import encoded, of_text, pixels_of
from ..sampling.sampler import SamplerSettings, draw, embedded
from ..training.environment import environment
from ..training.experts import Experts
from ..training.fitting import Fitting
from ..training.previews import negative_text
from ..training.validation import validation_loss

if TYPE_CHECKING:
    from PIL import Image

    from ..config import JobConfig
    from ..data.cache import TensorCache
    from ..data.progress import Progress
    from ..families.base import Base
    from ..families.conditioning import Conditioning, TextEmbedding
    from ..families.spec import FamilySpec
    from ..runs.checkpoints import Checkpoint
    from ..runs.events import Event
    from .prompts import Picture


class Session:
    """Loads once, for all checkpoints."""

    def __init__(
        self,
        job: JobConfig,
        base: Base,
        cache: TensorCache,
        settings: SamplerSettings,
        pictures: Sequence[Picture],
        held_out: bool,
        progress: Progress,
    ) -> None:
        """Encodes what is needed of texts and pictures, then loads the denoisers.

        Args:
            settings: how pictures are drawn.
            pictures: those that will be.
            held_out: whether the held-out loss will be measured.

        Raises:
            FoundryError: if base or data cannot be used.
        """
        job = job.model_copy(update={"memory": job.memory.but(compile=False)})  # it would take longer than it saves
        self._job, self._base, self._settings, self._progress = job, base, settings, progress
        self._data: PreparedData | None = None
        if held_out:
            self._data = PreparedData(job, base, cache, json.dumps(environment(base.device)))
            self._data.encode_texts([], progress)
            self._data.encode_images(progress)
        self._prompts = self._encoded(pictures)
        if job.adapter.text_encoders:
            base.load_text_encoders()  # stay loaded: each checkpoint embeds prompts in its own way
        progress("loading the base", 0, 1)
        memory = Fitting(job, base, self._data, _unheard).settings if self._data else MemorySettings.of(job)
        self._experts = Experts(job, base, _unheard, memory)

    def load(self, checkpoint: Checkpoint) -> None:
        """Puts a checkpoint's LoRA into the adapter.

        Raises:
            AdapterError: if a file is gone or damaged, or does not fit the base.
        """
        for one in self._experts:
            deltas = parse(read_tensors(checkpoint.path / one.lora_file))
            one.adapter.start_from(for_roots(deltas, one.adapter.roots, self._base))

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """Measures and draws without any LoRA."""
        with ExitStack() as stack:
            for one in self._experts:
                stack.enter_context(one.adapter.disabled())
            yield

    def held_out_loss(self, what: str) -> float:
        """The loss on held-out pictures, with the draws of all other checkpoints and of training's own validation.

        Args:
            what: it is called in the progress.
        """
        assert self._data is not None
        settings = self._job.validation.draws, self._job.train.batch_size
        with self._experts.evaluating("raw"):
            return validation_loss(self._experts, self._data, *settings, lambda: self._progress(what, 0, 1))

    def draw(self, pictures: Sequence[Picture], what: str) -> Iterator[tuple[Picture, Image.Image]]:
        """Draws pictures, one after the other; of videos a frame.

        Args:
            what: it is called in the progress.
        """
        base = self._base
        if not pictures:
            return
        try:
            base.load_vae()
            with self._experts.evaluating("raw"):
                for number, picture in enumerate(pictures):
                    shown, negative = self._prompts[picture]
                    latents = draw(
                        base,
                        lambda t: self._experts.at(t).denoiser,
                        [shown],
                        [picture.seed],
                        self._settings,
                        negative,
                        self._told(what, number, len(pictures)),
                    )
                    frames = frames_of(base.decode_latents(latents)[0])
                    yield picture, frames[-1 if _goes_on(self._job, base.spec) else 0]
        finally:
            base.free_vae()

    def _told(self, what: str, done: int, total: int) -> Callable[[], None]:
        return lambda: self._progress(what, done, total)

    def _encoded(self, pictures: Sequence[Picture]) -> dict[Picture, tuple[Conditioning, Conditioning]]:
        """What each picture is drawn from, and what guidance keeps away from."""
        base, negative = self._base, negative_text(self._job)
        self._progress("reading the prompts", 0, 1)
        pixels = pixels_of(base, [one.controls.pictures() for one in pictures], self._settings)
        texts: list[tuple[TextEmbedding | None, TextEmbedding | None]] = [(None, None)] * len(pictures)
        if pictures and not self._job.adapter.text_encoders:
            base.load_text_encoders()
            texts = [*embedded(base, [one.prompt for one in pictures], negative, of_text(pixels, base.spec))]
            base.free_text_encoders()
        seen = encoded(base, pixels, self._settings)
        return {
            picture: (replace(one, prompt=picture.prompt, text=own), replace(one, prompt=negative, text=other))
            for picture, one, (own, other) in zip(pictures, seen, texts, strict=True)
        }


def sampling_of(job: JobConfig, base: Base) -> SamplerSettings:
    """How pictures are drawn: as the job's previews, but of a video only what one frame takes.

    That is the first, drawn alone; where the first one is given, the last of a few.

    Raises:
        ConfigError: if the job's sizes do not fit the base.
    """
    spec = base.spec
    frames = None if spec.frame_rate is None else 1 + 2 * spec.main.time_factor * _goes_on(job, spec)
    return SamplerSettings.of(job.sample.but(frames=frames), base)


def _goes_on(job: JobConfig, spec: FamilySpec) -> bool:
    """Whether videos are drawn from a first frame, which then says nothing of the LoRA."""
    return spec.first_frame or (spec.takes_first_frame and bool(job.sample.controls))


def _unheard(_: Event) -> None:
    """What is planned is the training's business."""
