"""What one micro-batch contributes to an optimizer step: its draws, and the loss terms that follow from them.

Every draw is a function of seed, step and sample, not of the sample's place in the batch. The terms come one after the
other, so that the caller can run each one's backward pass before the next one's graph is built: preservation costs time
and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data.captions import choose, with_class
from ..data.variants import choose_variant
from ..families.base import stack_text
from ..families.device import autocast
from ..objective.guidance import contrastive_scale, contrastive_target, differential_target
from ..objective.losses import elementwise, sample_means
from ..objective.timesteps import NoiseStages, TimestepSampler
from ..randomness import normal_like, uniform

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..config import DatasetConfig, JobConfig
    from ..data.prepare import PreparedData
    from ..data.scan import Sample
    from ..families.base import Base, TextEmbedding

MAIN, OUTPUT, BLANK = "loss", "output_preservation", "blank_preservation"
"""Names of the terms."""


@dataclass(frozen=True)
class Term:
    """One addend of the loss, for each sample of the micro-batch."""

    name: str
    minimised: Tensor
    """(N,), fp32, with its graph: weighted and with the target that training aims at."""
    shown: Tensor
    """(N,), fp32, detached: against the plain target and unweighted, so that settings do not change what it means."""


@dataclass(frozen=True)
class Draws:
    """What was drawn for a micro-batch, on the base's device."""

    clean: Tensor
    """Latents (N, C, H, W), drawn from the VAE's posterior."""
    noise: Tensor
    t: Tensor
    """Times (N,)"""
    captions: list[str]
    class_captions: list[str]
    """The captions with a class word in the trigger's place; the captions themselves without output preservation."""
    mask: Tensor | None
    """(N, 1, H, W), mean 1 in each sample"""
    guidance: Tensor | None
    """Value of a distilled model's guidance input (N,), for all passes alike; None is the family's for training."""
    controls: tuple[Tensor, ...]
    """Latents (N, C, h, w) of the control images."""
    sizes: Tensor
    """Sizes and crops (N, 6), fp32, as `Latents.sizes` has them."""


def timesteps_of(job: JobConfig, base: Base) -> TimestepSampler:
    """The times that a job trains."""
    train = job.train
    kind = base.timestep_type if train.timestep_type == "auto" else train.timestep_type
    return TimestepSampler(kind, train.timestep_bias, train.timestep_min, train.timestep_max)


class Objective:
    """The job's whole training objective over one denoiser with its adapter."""

    def __init__(self, job: JobConfig, base: Base, data: PreparedData, denoiser: nn.Module, adapter: Adapter) -> None:
        self.job, self.base, self.data, self.denoiser, self.adapter = job, base, data, denoiser, adapter
        train = job.train
        self.timesteps = timesteps_of(job, base)
        self.stages = NoiseStages(train.stage_boundaries, train.stages, train.stage_switch_every)

    def terms(self, batch: list[Sample], step: int, number: int, seen: dict[str, int]) -> Iterator[Term]:
        """The loss terms of micro-batch `number` of the update that follows `step` updates.

        All samples have the same size, the same adapter strength and the same role. `seen` counts how often a sample
        has come in this step, so that it gets other noise each time. Run a term's backward pass before asking for the
        next: the adapter's dropout and strength are set for the term at hand.
        """
        dataset = self.job.datasets[batch[0].dataset]
        draws = self.draw(batch, step, seen)
        noisy = self.base.schedule.noised(draws.clean, draws.noise, draws.t)
        settings = self.job.regularization
        self.adapter.set_strength(dataset.adapter_strength)
        yield self._main(batch, draws, noisy, (step, number))
        if dataset.role == "train" and step % settings.preservation_every == 0:
            if settings.output_preservation:
                # where the trigger is absent (a dropped caption), both prompts are the same: nothing to preserve
                changed = [own != plain for own, plain in zip(draws.class_captions, draws.captions, strict=True)]
                if any(changed):
                    weight = torch.tensor(changed, device=noisy.device) * settings.output_preservation_weight
                    yield self._preserved(OUTPUT, draws.class_captions, weight, draws, noisy, (step, number))
            if settings.blank_preservation:
                weight = torch.full_like(draws.t, settings.blank_preservation_weight)
                yield self._preserved(BLANK, [""] * len(batch), weight, draws, noisy, (step, number))

    # --- draws -------------------------------------------------------------------------------------------------------

    def draw(self, batch: list[Sample], step: int, seen: dict[str, int]) -> Draws:
        """Latents, noise, times and captions of a micro-batch."""
        clean, noise, levels, captions, class_captions, masks, controls, sizes = [], [], [], [], [], [], [], []
        for sample in batch:
            seen[sample.key] = seen.get(sample.key, 0) + 1
            place = (self.job.train.seed, step, sample.key, seen[sample.key])
            dataset = self.job.datasets[sample.dataset]
            latents = self.data.latents(sample, choose_variant(dataset, *place))
            clean.append(latents.mean + latents.spread * normal_like(latents.mean.shape, "posterior", *place))
            noise.append(self._noise(latents.mean.shape, place))
            levels.append(uniform("timestep", *place))
            captions.append(choose(self.data.texts_of(sample), dataset, *place))
            class_captions.append(self._class_caption(captions[-1], dataset.trigger, place))
            masks.append(latents.mask if latents.mask is not None else torch.ones_like(latents.mean[:1]))
            controls.append(latents.controls)
            sizes.append(latents.sizes)
        device = self.base.device
        x, e = torch.stack(clean).to(device), torch.stack(noise).to(device)
        timesteps = self.timesteps.within(*self.stages.limits(self.stages.stage(step)))
        t = timesteps.times(torch.tensor(levels), self.base.schedule, self.base.image_tokens(*x.shape[2:])).to(device)
        masked = any(self.job.datasets[sample.dataset].masked for sample in batch)
        return Draws(
            clean=x,
            noise=e,
            t=t,
            captions=captions,
            class_captions=class_captions,
            mask=torch.stack(masks).to(device) if masked else None,
            guidance=self._guidance(self.job.datasets[batch[0].dataset], t),
            controls=tuple(torch.stack(group).to(device) for group in zip(*controls, strict=True)),
            sizes=torch.tensor(sizes, dtype=torch.float32).to(device),
        )

    def _noise(self, shape: torch.Size, place: tuple[int | str, ...]) -> Tensor:
        """Noise (C, H, W) of one sample, and the offset that the job asks for: the same number all over a channel.

        Where a schedule leaves a trace of the picture in its noisiest step, that trace is the mean of each channel;
        without an offset, models learn to keep it, and never draw very dark or bright pictures (Guttenberg 2023).
        """
        noise = normal_like(shape, "noise", *place)
        offset = self.job.train.noise_offset
        return noise + offset * normal_like((shape[0], 1, 1), "noise_offset", *place) if offset else noise

    def _class_caption(self, caption: str, trigger: str | None, place: tuple[int | str, ...]) -> str:
        classes = self.job.regularization.classes
        if not self.job.regularization.output_preservation or trigger is None:
            return caption
        return with_class(caption, trigger, classes[int(uniform("class", *place) * len(classes))])

    def _guidance(self, dataset: DatasetConfig, t: Tensor) -> Tensor | None:
        settings = self.job.regularization
        if not settings.contrastive_guidance or dataset.role != "train":
            return None
        return contrastive_scale(settings.contrastive_guidance_scale, t, settings.contrastive_guidance_schedule)

    # --- terms -------------------------------------------------------------------------------------------------------

    def _main(self, batch: list[Sample], draws: Draws, noisy: Tensor, place: tuple[int, int]) -> Term:
        settings, train = self.job.regularization, self.job.train
        dataset = self.job.datasets[batch[0].dataset]
        target = aim = self.base.schedule.target(draws.clean, draws.noise, draws.t)
        if dataset.role == "regularization" and dataset.regularization_target == "base":
            target = aim = self.base_prediction(draws, noisy, draws.captions)
        elif draws.guidance is not None:
            self.adapter.seed_dropout()  # none: the promptless prediction is a target
            with torch.no_grad():
                promptless = self.predict(draws, noisy, [""] * len(batch))
            aim = contrastive_target(target, promptless, draws.guidance, settings.contrastive_guidance_projection)
        self.adapter.seed_dropout(train.seed, *place)
        predicted = self.predict(draws, noisy, draws.captions)
        shown = sample_means(elementwise(predicted.detach(), target, train.loss_type, train.huber_delta), draws.mask)
        if settings.differential_guidance and dataset.role == "train":
            aim = differential_target(predicted, aim, settings.differential_guidance_scale)
        losses = sample_means(elementwise(predicted, aim, train.loss_type, train.huber_delta), draws.mask)
        weight = self.timesteps.weight(draws.t)
        if train.min_snr_gamma is not None:
            weight = weight * self.base.schedule.min_snr_weight(draws.t, train.min_snr_gamma)
        weights = torch.tensor([self.job.datasets[sample.dataset].loss_weight for sample in batch])
        return Term(MAIN, losses * weight * weights.to(losses.device), shown)

    def _preserved(
        self, name: str, prompts: list[str], weight: Tensor, draws: Draws, noisy: Tensor, place: tuple[int, int]
    ) -> Term:
        """λ · (v_θ(x_t, t, prompt) - v_base(x_t, t, prompt))²: the same noise, time and controls, another prompt."""
        prior = self.base_prediction(draws, noisy, prompts)
        self.adapter.seed_dropout(self.job.train.seed, *place, name)
        losses = sample_means(elementwise(self.predict(draws, noisy, prompts), prior))
        return Term(name, losses * weight, losses.detach() * (weight > 0))

    def base_prediction(self, draws: Draws, noisy: Tensor, prompts: list[str]) -> Tensor:
        """What the base predicts without the adapter, as a target: no gradient."""
        with torch.no_grad(), self.adapter.disabled():
            return self.predict(draws, noisy, prompts)

    def predict(self, draws: Draws, noisy: Tensor, prompts: list[str]) -> Tensor:
        """The denoiser's prediction for prompts that the job may need, fp32."""
        text = self.texts(prompts)
        with autocast(self.base.device, self.base.dtype):
            return self.base.predict(
                self.denoiser,
                noisy,
                draws.t,
                text,
                guidance=draws.guidance,
                controls=draws.controls,
                sizes=draws.sizes,
            ).float()

    def texts(self, prompts: list[str]) -> dict[str, Tensor]:
        """A batch of embeddings: those that the data side has encoded, or, where text encoders are adapted, new ones.

        New ones carry their graph where gradients are on.
        """
        if not self.job.adapter.text_encoders:
            return stack_text([self.data.text(prompt) for prompt in prompts], self.base.device)
        with autocast(self.base.device, self.base.text_encoder_dtype):
            return self.base.embed(prompts)

    def text(self, prompt: str) -> TextEmbedding:
        """The same of one prompt, without graph."""
        with torch.no_grad():
            return {name: values[0] for name, values in self.texts([prompt]).items()}
