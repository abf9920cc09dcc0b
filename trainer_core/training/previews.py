"""Preview pictures of a run, with the weights as they are; training goes on undisturbed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.captions import prompt_with_trigger
from ..data.images import png_bytes, to_image
from ..errors import Interrupted
from ..files import write_atomically
from ..runs.events import SampleReady
from ..sampling.controls import PromptControls, check_controls_of, controlled_set, encoded, of_items, of_settings
from ..sampling.sampler import SamplerSettings, draw

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import JobConfig
    from ..data.prepare import PreparedData
    from ..families.base import Base
    from ..runs.run_folder import RunFolder
    from .loop import Trainer


def preview_texts(job: JobConfig) -> list[str]:
    """The job's prompts, with the trigger in its place; an empty list if there are no previews."""
    return [prompt_with_trigger(prompt, job.preview_trigger) for prompt in job.sample.prompts]


def negative_text(job: JobConfig) -> str:
    """What its previews keep away from, with the trigger in its place."""
    return prompt_with_trigger(job.sample.negative_prompt, job.preview_trigger)


@dataclass(frozen=True)
class PreviewControls:
    """The control images of a run's previews: for each of its prompts, which they are and their latents."""

    shown: list[PromptControls]
    latents: list[tuple[Tensor, ...]]


def preview_controls(job: JobConfig, base: Base, data: PreparedData) -> PreviewControls:
    """Reads and encodes them, so that no preview fails for want of a file after an hour; loads and frees the VAE.

    They are those that the job names, or else those of the first training images.

    Raises:
        ConfigError: if the job names some that are not there, or more than the family takes.
        DatasetError: if one cannot be read.
    """
    check_controls_of(job.sample, base.spec)
    count, number = len(job.sample.prompts), controlled_set(job)
    if job.sample.controls or number is None or not base.spec.max_controls:
        shown = of_settings(job.sample, count)
    else:
        shown = of_items((sample.item for sample in data.samples[number]), job.datasets[number], count)
    settings = SamplerSettings.of(job.sample, base)
    return PreviewControls(shown, encoded(base, [one.pictures() for one in shown], settings))


def forget_samples(run: RunFolder, step: int) -> None:
    """Deletes the previews of steps after `step`, which the run has not made (any more) and will draw again."""
    for folder in (run.path / "samples").glob("step_*"):
        if folder.name[5:].isdecimal() and int(folder.name[5:]) > step:
            shutil.rmtree(folder, ignore_errors=True)


def draw_samples(trainer: Trainer) -> None:
    """Draws one picture for each of the job's prompts into the run's folder. A request to stop ends it early."""
    config, base = trainer.job.sample, trainer.base
    if not config.prompts:
        return
    settings = SamplerSettings.of(config, base)
    controls = trainer.preview_controls

    def stopped() -> bool:
        return trainer.control.interrupts

    trainer.denoiser.eval()
    trainer.adapter.set_strength(1.0)
    trainer.adapter.seed_dropout()  # none
    try:
        base.load_vae()
        with trainer.weights(config.weights):
            negative = trainer.objective.text(negative_text(trainer.job))
            for index, prompt in enumerate(preview_texts(trainer.job)):
                seed = config.seed + index * config.walk_seed
                texts = [trainer.objective.text(prompt)]
                latents = draw(
                    base, trainer.denoiser, texts, [seed], settings, negative, stopped, controls.latents[index]
                )
                path = trainer.run.sample_folder(trainer.step) / f"{index:02d}.png"
                facts = {"prompt": prompt, "seed": str(seed), "weights": trainer.which(config.weights)}
                if names := controls.shown[index].names:
                    facts["controls"] = names
                picture = png_bytes(to_image(base.decode_latents(latents)[0]), facts)
                write_atomically(path, picture, inside=trainer.run.path)
                trainer.emit(SampleReady(trainer.step, path, config.prompts[index], index))
    except Interrupted:
        return  # the loop sees the same request to stop
    finally:
        base.free_vae()
        trainer.denoiser.train()
