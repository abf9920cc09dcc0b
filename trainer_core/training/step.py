"""The loss terms of one micro-batch, computed from what was drawn for it.

The terms come one after the other, so that the caller can run each one's backward pass before the next one's graph is
built: preservation costs time and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..families.conditioning import Streams, each
from ..families.device import autocast, upload
from ..objective.guidance import contrastive_scale, contrastive_target, differential_target
from ..objective.losses import elementwise, sample_means
from ..objective.timesteps import TimestepSampler

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..config import DatasetConfig, JobConfig
    from ..families.base import Base
    from ..families.conditioning import Conditioning
    from .batch_source import TrainBatch

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


def timesteps_of(job: JobConfig, base: Base) -> TimestepSampler:
    """The times that a job trains."""
    train = job.train
    kind = base.timestep_type if train.timestep_type == "auto" else train.timestep_type
    return TimestepSampler(kind, train.timestep_bias, train.timestep_min, train.timestep_max)


class Objective:
    """The job's whole training objective over one denoiser with its adapter."""

    def __init__(self, job: JobConfig, base: Base, denoiser: nn.Module, adapter: Adapter) -> None:
        self.job, self.base, self.denoiser, self.adapter = job, base, denoiser, adapter
        self.timesteps = timesteps_of(job, base)

    def terms(self, batch: TrainBatch, number: int) -> Iterator[Term]:
        """The loss terms of a micro-batch.

        Run a term's backward pass before asking for the next: the adapter's dropout and strength are set for the term
        at hand.

        Args:
            number: of the micro-batch in its update, which its dropout is a function of.
        """
        batch = batch.to(self.base.device)
        noisy = {
            name: self.base.schedule.add_noise(batch.clean[name], batch.noise[name], batch.t) for name in batch.clean
        }
        settings, place = self.job.regularization, (batch.number, number)
        guidance = self._guidance(self._dataset(batch), batch.t)
        self.adapter.set_strength(self._dataset(batch).adapter_strength)
        if not self.adapter.knows_siblings:
            with torch.no_grad(), self.adapter.finding_siblings():
                self.predict(noisy, batch.t, batch.captioned, guidance)
        yield self._main(batch, noisy, guidance, place)
        if batch.of_class is not None:
            # where the trigger is absent (a dropped caption), both prompts are the same: nothing to preserve
            pairs = zip(batch.of_class, batch.captioned, strict=True)
            changed = [own.prompt != plain.prompt for own, plain in pairs]
            if any(changed):
                weight = upload(torch.tensor(changed), batch.t.device) * settings.output_preservation_weight
                yield self._preserved(OUTPUT, batch.of_class, weight, batch, noisy, guidance, place)
        if batch.blank is not None and settings.blank_preservation and self._preserves(batch):
            weight = torch.full_like(batch.t, settings.blank_preservation_weight)
            yield self._preserved(BLANK, batch.blank, weight, batch, noisy, guidance, place)

    def _main(self, batch: TrainBatch, noisy: Streams, guidance: Tensor | None, place: tuple[int, int]) -> Term:
        settings, train, dataset = self.job.regularization, self.job.train, self._dataset(batch)
        targets = aims = {
            name: self.base.schedule.target(batch.clean[name], batch.noise[name], batch.t) for name in noisy
        }
        if dataset.role == "regularization" and dataset.regularization_target == "base":
            targets = aims = self.base_prediction(noisy, batch.t, batch.captioned, guidance)
        elif guidance is not None:
            assert batch.blank is not None
            self.adapter.seed_dropout()  # none: the promptless prediction is a target
            with torch.no_grad():
                promptless = self.predict(noisy, batch.t, batch.blank, guidance)
            projection = settings.contrastive_guidance_projection
            aims = each(lambda aim, plain: contrastive_target(aim, plain, guidance, projection), targets, promptless)
        self.adapter.seed_dropout(train.seed, *place, first=batch.first, samples=len(batch))
        predicted = self.predict(noisy, batch.t, batch.captioned, guidance)
        shown = self._losses(each(Tensor.detach, predicted), targets, batch.mask)
        if settings.differential_guidance and dataset.role == "train":
            scale = settings.differential_guidance_scale
            aims = each(lambda own, aim: differential_target(own, aim, scale), predicted, aims)
        losses = self._losses(predicted, aims, batch.mask)
        weight = self.timesteps.weight(batch.t)
        if train.min_snr_gamma is not None:
            weight = weight * self.base.schedule.min_snr_weight(batch.t, train.min_snr_gamma)
        weights = torch.tensor([self.job.datasets[sample.dataset].loss_weight for sample in batch.samples])
        return Term(MAIN, losses * weight * upload(weights, losses.device), shown)

    def _preserved(
        self,
        name: str,
        prompts: Sequence[Conditioning],
        weight: Tensor,
        batch: TrainBatch,
        noisy: Streams,
        guidance: Tensor | None,
        place: tuple[int, int],
    ) -> Term:
        """λ · (v_θ(x_t, t, prompt) - v_base(x_t, t, prompt))²: the same noise, time and controls, another prompt."""
        prior = self.base_prediction(noisy, batch.t, prompts, guidance)
        self.adapter.seed_dropout(self.job.train.seed, *place, name, first=batch.first, samples=len(batch))
        losses = self.losses(self.predict(noisy, batch.t, prompts, guidance), prior)
        return Term(name, losses * weight, losses.detach() * (weight > 0))

    def base_prediction(
        self, noisy: Streams, t: Tensor, prompts: Sequence[Conditioning], guidance: Tensor | None = None
    ) -> Streams:
        """What the base predicts without the adapter, as a target: no gradient."""
        with torch.no_grad(), self.adapter.disabled():
            return self.predict(noisy, t, prompts, guidance)

    def predict(
        self, noisy: Streams, t: Tensor, prompts: Sequence[Conditioning], guidance: Tensor | None = None
    ) -> Streams:
        """The denoiser's prediction, fp32.

        Args:
            guidance: value of a distilled model's guidance input (N,); None is the family's for training.
        """
        base = self.base
        with autocast(base.device, base.text_encoder_dtype):
            conditioning = base.collate(prompts, guidance)
        with autocast(base.device, base.dtype):
            return each(Tensor.float, base.predict(self.denoiser, noisy, t, conditioning))

    def _losses(self, predicted: Streams, targets: Streams, mask: Streams) -> Tensor:
        """(N,): the loss that the job asks for."""
        return self.losses(predicted, targets, mask, self.job.train.loss_type, self.job.train.huber_delta)

    def losses(
        self, predicted: Streams, targets: Streams, mask: Streams | None = None, kind: str = "mse", delta: float = 1.0
    ) -> Tensor:
        """(N,): the weighted sum over all streams of the mean loss of each sample."""
        return torch.stack(
            [
                one.weight
                * sample_means(
                    elementwise(predicted[one.name], targets[one.name], kind, delta), (mask or {}).get(one.name)
                )
                for one in self.base.spec.streams
            ]
        ).sum(0)

    def _dataset(self, batch: TrainBatch) -> DatasetConfig:
        return self.job.datasets[batch.samples[0].dataset]

    def _preserves(self, batch: TrainBatch) -> bool:
        return batch.number % self.job.regularization.preservation_every == 0

    def _guidance(self, dataset: DatasetConfig, t: Tensor) -> Tensor | None:
        settings = self.job.regularization
        if not settings.contrastive_guidance or dataset.role != "train":
            return None
        return contrastive_scale(settings.contrastive_guidance_scale, t, settings.contrastive_guidance_schedule)
