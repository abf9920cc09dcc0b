"""Preview pictures of a run, with the weights as they are; training goes on undisturbed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from ..data.captions import prompt_with_trigger
from ..data.images import png_bytes, to_image
from ..files import write_atomically
from ..sampling import Interrupted, SamplerSettings, draw
from .events import SampleReady

if TYPE_CHECKING:
    from ..config import JobConfig
    from .loop import Trainer
    from .run_folder import RunFolder


def preview_texts(job: JobConfig) -> list[str]:
    """The job's prompts, with the trigger in its place; an empty list if there are no previews."""
    return [prompt_with_trigger(prompt, job.preview_trigger) for prompt in job.sample.prompts]


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

    def stopped() -> bool:
        return trainer.control.interrupts

    trainer.denoiser.eval()
    trainer.adapter.set_strength(1.0)
    trainer.adapter.seed_dropout()  # none
    try:
        base.load_vae()
        with trainer.weights(config.weights):
            negative = trainer.objective.text(config.negative_prompt)
            for index, prompt in enumerate(preview_texts(trainer.job)):
                seed = config.seed + index * config.walk_seed
                texts = [trainer.objective.text(prompt)]
                latents = draw(base, trainer.denoiser, texts, [seed], settings, negative, stopped)
                path = trainer.run.sample_folder(trainer.step) / f"{index:02d}.png"
                facts = {"prompt": prompt, "seed": str(seed), "weights": trainer.which(config.weights)}
                picture = png_bytes(to_image(base.decode_latents(latents)[0]), facts)
                write_atomically(path, picture, inside=trainer.run.path)
                trainer.emit(SampleReady(trainer.step, path, config.prompts[index], index))
    except Interrupted:
        return  # the loop sees the same request to stop
    finally:
        base.free_vae()
        trainer.denoiser.train()
