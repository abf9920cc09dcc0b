"""Preview pictures and videos of a run, with the weights as they are; training goes on undisturbed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from ..data.captions import prompt_with_trigger
from ..data.images import png_bytes
from ..files import write_atomically
from ..runs.events import Phase, SampleReady
from ..sampling.animation import RATE, frames_of, webp_bytes
from ..sampling.controls import (
    check_controls_of,
    controlled_set,
    encoded,
    of_items,
    of_settings,
    of_text,
    pixels_of,
)
from ..sampling.sampler import SamplerSettings, draw, embedded

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import JobConfig
    from ..data.prepare import PreparedData
    from ..families.base import Base
    from ..families.conditioning import TextEmbedding
    from ..runs.events import Listener
    from ..runs.run_folder import RunFolder
    from ..sampling.controls import PromptControls
    from .experts import Experts


def preview_texts(job: JobConfig) -> list[str]:
    """The job's prompts, with the trigger in its place; an empty list if there are no previews."""
    return [prompt_with_trigger(prompt, job.preview_trigger) for prompt in job.sample.prompts]


def negative_text(job: JobConfig) -> str:
    """What its previews keep away from, with the trigger in its place."""
    return prompt_with_trigger(job.sample.negative_prompt, job.preview_trigger)


class Previews:
    """The previews of a run: what each is drawn from, and where it goes."""

    def __init__(self, run: RunFolder, job: JobConfig, base: Base, data: PreparedData, emit: Listener) -> None:
        """Reads and encodes control images, so that no preview fails for want of a file after an hour.

        They are those that the job names, or else those of the first training images. Loads and frees the VAE, and the
        text encoders where these look at control images.

        Raises:
            ConfigError: if the job names some that are not there, or more than the family takes.
            DatasetError: if one cannot be read.
        """
        self._run, self._job, self._base, self._data, self._emit = run, job, base, data, emit
        check_controls_of(job.sample, base.spec)
        self._settings = SamplerSettings.of(job.sample, base)
        self._shown = self._controls()
        pixels = pixels_of(base, [one.pictures() for one in self._shown], self._settings)
        self._given = encoded(base, pixels, self._settings)
        """What each prompt is drawn with beside its text."""
        self._texts: list[tuple[TextEmbedding, TextEmbedding]] | None = None
        """Of each prompt and the negative one, if text encoders look at its control images: others are in the cache."""
        if base.spec.text_sees_controls and any(pixels):
            base.load_text_encoders()
            self._texts = embedded(base, preview_texts(job), negative_text(job), of_text(pixels, base.spec))
            base.free_text_encoders()

    def draw(self, step: int, experts: Experts, on_step: Callable[[], None]) -> None:
        """Draws one picture for each of the job's prompts into the run's folder.

        `on_step` is called before each denoising step, and ends the drawing by raising.

        Raises:
            CacheMiss: if a prompt's embedding is not in the cache any more.
        """
        config, base = self._job.sample, self._base
        if not config.prompts:
            return
        try:
            base.load_vae()
            with experts.evaluating(config.weights):
                for index, prompt in enumerate(preview_texts(self._job)):
                    self._emit(Phase("drawing sample", index + 1, len(config.prompts)))
                    seed = config.seed + index * config.walk_seed
                    shown, without = (
                        replace(self._given[index], prompt=text, text=embedding)
                        for text, embedding in zip(
                            (prompt, negative_text(self._job)), self._embeddings(index, prompt), strict=True
                        )
                    )
                    latents = draw(
                        base, lambda t: experts.at(t).denoiser, [shown], [seed], self._settings, without, on_step
                    )
                    facts = {"prompt": prompt, "seed": str(seed), "weights": experts.which(config.weights)}
                    if names := self._shown[index].names:
                        facts["controls"] = names
                    path = self._run.sample_folder(step) / f"{index:02d}.png"
                    frames = frames_of(base.decode_latents(latents)[0])
                    clip = path.with_suffix(".webp") if base.spec.frame_rate and len(frames) > 1 else None
                    if clip and base.spec.frame_rate:
                        facts[RATE] = f"{base.spec.frame_rate:g}"
                        write_atomically(clip, webp_bytes(frames, base.spec.frame_rate), inside=self._run.path)
                    write_atomically(path, png_bytes(frames[0], facts), inside=self._run.path)
                    self._emit(SampleReady(step, path, config.prompts[index], index, clip))
        finally:
            base.free_vae()

    def lacks(self, step: int) -> bool:
        """Whether pictures of a step are not there."""
        return len(self._run.sample_paths(step)) < len(self._job.sample.prompts)

    def forget(self, step: int) -> None:
        """Deletes those of steps after `step`, which the run has not made (any more) and will draw again."""
        for folder in (self._run.path / "samples").glob("step_*"):
            if folder.name[5:].isdecimal() and int(folder.name[5:]) > step:
                shutil.rmtree(folder, ignore_errors=True)

    def _embeddings(self, index: int, prompt: str) -> tuple[TextEmbedding | None, TextEmbedding | None]:
        """Of a prompt and of the negative one; none where the text encoders are adapted, which embed them anew."""
        if self._job.adapter.text_encoders:
            return None, None
        if self._texts is not None:
            return self._texts[index]
        return self._data.text(prompt), self._data.text(negative_text(self._job))

    def _controls(self) -> list[PromptControls]:
        job, count, spec = self._job, len(self._job.sample.prompts), self._base.spec
        number = controlled_set(job, spec)
        if job.sample.controls or number is None:
            return of_settings(job.sample, count)
        return of_items((sample.item for sample in self._data.samples[number]), job.datasets[number], count, spec)
