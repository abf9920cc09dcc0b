"""What each update trains on: its micro-batches with all their draws, as a function of (seed, number of the update).

Every draw is a function of seed, number and sample, not of the sample's place in a batch. Nothing is encoded here: what
is not in the cache any more is a `CacheMiss`, and whoever asked encodes again between two updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.batches import BatchOrder
from ..data.captions import choose, with_class
from ..data.variants import Variant, choose_variant
from ..families.conditioning import AUDIO, MAIN, Conditioning, Streams
from ..objective.timesteps import NoiseStages, TimestepSampler
from ..randomness import normal_like, uniform
from .parallel import ALONE, Ranks

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..data.encoded import Latents
    from ..data.prepare import PreparedData
    from ..data.scan import Sample
    from ..families.base import Base

Place = tuple[int | str, ...]
"""(seed, number of the update, sample, how often it has come in it): what every draw is a function of."""


@dataclass(frozen=True)
class TrainBatch:
    """A micro-batch and all that was drawn for it. Its samples have the same size, adapter strength and role."""

    number: int
    """Of the update, in the run's draws."""
    everyone: tuple[Sample, ...]
    """All samples of the micro-batch, of which this process may train a part."""
    samples: list[Sample]
    clean: Streams
    """Latents with a batch dimension, main (N, C, H, W), drawn from the VAE's posterior."""
    noise: Streams
    t: Tensor
    """Times (N,)"""
    mask: Streams
    """Weights of the loss (N, 1, …), of mean 1 in each sample, of the streams that have any; 0 for missing sound."""
    captioned: list[Conditioning]
    of_class: list[Conditioning] | None = None
    """With a class word in the trigger's place; None where there is no output preservation in this update."""
    blank: list[Conditioning] | None = None
    """With the blank prompt; None where nothing asks for it."""
    first: int = 0
    """Place of its first sample among everyone."""

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, start: int, stop: int) -> TrainBatch:
        """Some of its samples."""
        return replace(self._each(lambda value: value[start:stop]), first=self.first + start)

    def to(self, device: torch.device) -> TrainBatch:
        """Its tensors on a device; conditioning is moved when it is collated."""
        return self._each(lambda value: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value)

    def pinned(self) -> TrainBatch:
        """Its tensors in memory from which a GPU copies without waiting."""
        return self._each(lambda value: value.pin_memory() if isinstance(value, Tensor) else value)

    def _each(self, function: Any) -> TrainBatch:
        changed: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, dict):
                changed[one.name] = {name: function(tensor) for name, tensor in value.items()}
            elif isinstance(value, list | Tensor):
                changed[one.name] = function(value)
        return replace(self, **changed)


class BatchSource:
    """The micro-batches of each update of a job."""

    def __init__(
        self,
        job: JobConfig,
        base: Base,
        data: PreparedData,
        timesteps: TimestepSampler,
        stages: NoiseStages,
        ranks: Ranks = ALONE,
    ) -> None:
        train = job.train
        self.job, self.data, self.timesteps = job, data, timesteps
        self.stages, self._ranks = stages, ranks
        self._schedule, self._tokens = base.schedule, base.tokens
        size = train.batch_size * ranks.count
        self._order = BatchOrder(data.samples, job.datasets, size, train.seed, job.regularization.ratio)

    def get(self, number: int) -> list[TrainBatch]:
        """All micro-batches of update `number`, on the CPU.

        Raises:
            CacheMiss: if something is not in the cache any more.
        """
        count = self.job.train.gradient_accumulation
        seen: dict[str, int] = {}
        return [self.micro_batch(self._order.micro_batch(number * count + k), number, seen) for k in range(count)]

    def micro_batch(self, samples: list[Sample], number: int, seen: dict[str, int]) -> TrainBatch:
        """Latents, noise, times and captions for given samples, or for this rank's part of them.

        Args:
            seen: how often each has come in this update, which is counted on: it gets other noise each time.

        Raises:
            CacheMiss: if something is not in the cache any more.
        """
        places: list[Place] = []
        for sample in samples:
            seen[sample.key] = seen.get(sample.key, 0) + 1
            places.append((self.job.train.seed, number, sample.key, seen[sample.key]))
        mine = self._ranks.part(len(samples))
        if not samples[mine]:  # one of them says what the others train: nothing of it is trained here
            return replace(self._drawn(samples[:1], number, places[:1]), everyone=tuple(samples)).part(0, 0)
        return replace(self._drawn(samples[mine], number, places[mine]), everyone=tuple(samples), first=mine.start)

    def _drawn(self, samples: list[Sample], number: int, places: list[Place]) -> TrainBatch:
        variants = [
            choose_variant(self.job.datasets[sample.dataset], *place)
            for sample, place in zip(samples, places, strict=True)
        ]
        drawn = [self.data.latents(sample, variant) for sample, variant in zip(samples, variants, strict=True)]
        pairs = list(zip(drawn, places, strict=True))
        clean = stacked([{name: _posterior(one, name, place) for name in one.mean} for one, place in pairs])
        levels = torch.tensor([uniform("timestep", *place) for place in places])
        within = self.timesteps.within(*self.stages.limits(self.stages.stage(number)))
        return TrainBatch(
            number,
            tuple(samples),
            samples,
            clean,
            noise=stacked(
                [{name: self._noise(one.mean[name], name, place) for name in one.mean} for one, place in pairs]
            ),
            t=within.times(levels, self._schedule, self._tokens(clean[MAIN].shape[1:])),
            mask=self._mask(samples, drawn),
            **self._conditioning(number, samples, variants, drawn, places),
        )

    def _noise(self, like: Tensor, stream: str, place: Place) -> Tensor:
        """Noise of one sample, and the offset that the job asks for: the same number all over a channel.

        Where a schedule leaves a trace of the picture in its noisiest step, that trace is the mean of each channel;
        without an offset, models learn to keep it, and never draw very dark or bright pictures (Guttenberg 2023).
        """
        noise, offset = normal_like(like.shape, *named("noise", stream), *place), self.job.train.noise_offset
        if not offset:
            return noise
        channels = (len(like), *[1] * (like.dim() - 1))
        return noise + offset * normal_like(channels, *named("noise_offset", stream), *place)

    def _mask(self, samples: list[Sample], drawn: list[Latents]) -> Streams:
        masked = any(self.job.datasets[sample.dataset].masked for sample in samples)
        if not masked and all(one.mask is None for one in drawn):
            return heard(drawn)
        ones = [torch.ones_like(one.mean[MAIN][:1]) if one.mask is None else one.mask for one in drawn]
        return {MAIN: torch.stack(ones), **heard(drawn)}

    def _conditioning(
        self,
        number: int,
        samples: list[Sample],
        variants: list[Variant],
        drawn: list[Latents],
        places: list[Place],
    ) -> dict[str, Any]:
        """`captioned`, `of_class` and `blank`, as far as the update needs them."""
        settings, role = self.job.regularization, self.job.datasets[samples[0].dataset].role
        preserves = role == "train" and number % settings.preservation_every == 0
        found: dict[str, list[Conditioning]] = {"captioned": []}
        if preserves and settings.output_preservation:
            found["of_class"] = []
        if role == "train" and (settings.contrastive_guidance or (preserves and settings.blank_preservation)):
            found["blank"] = []
        for sample, variant, latents, place in zip(samples, variants, drawn, places, strict=True):
            dataset = self.job.datasets[sample.dataset]
            caption = choose(self.data.texts_of(sample), dataset, *place)
            texts = {
                "captioned": caption,
                "of_class": self._class_caption(caption, dataset.trigger, place),
                "blank": "",
            }
            wanted = [texts[name] for name in found]
            given = self.data.conditioning(sample, variant, latents, *wanted)
            for name, one in zip(found, given, strict=True):
                found[name].append(one)
        return found

    def _class_caption(self, caption: str, trigger: str | None, place: Place) -> str:
        classes = self.job.regularization.classes
        if not self.job.regularization.output_preservation or trigger is None:
            return caption
        return with_class(caption, trigger, classes[int(uniform("class", *place) * len(classes))])


class Prefetched:
    """A batch source whose next update is drawn by a thread while this one trains."""

    def __init__(self, source: BatchSource, device: torch.device) -> None:
        self._source, self._pins = source, device.type == "cuda"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lora-foundry batches")
        self._ahead: tuple[int, Future[list[TrainBatch]]] | None = None

    def get(self, number: int) -> list[TrainBatch]:
        """As `BatchSource.get`; update `number + 1` is begun."""
        waiting, self._ahead = self._ahead, None
        if waiting is not None and waiting[0] == number:
            found = waiting[1].result()
        else:
            found = self._pool.submit(self._made, number).result()
        self._ahead = number + 1, self._pool.submit(self._made, number + 1)
        return found

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _made(self, number: int) -> list[TrainBatch]:
        found = self._source.get(number)
        return [batch.pinned() for batch in found] if self._pins else found


def heard(drawn: Sequence[Latents]) -> Streams:
    """Weights (N, 1, …) of the sound's loss, 0 for samples whose sound is none; empty if all have some."""
    if not any(one.silent for one in drawn):
        return {}
    weights = torch.tensor([0.0 if one.silent else 1.0 for one in drawn])
    return {AUDIO: weights.view(-1, *[1] * drawn[0].mean[AUDIO].dim())}


def stacked(samples: Sequence[Streams]) -> Streams:
    """Streams of several samples as one batch."""
    return {name: torch.stack([one[name] for one in samples]) for name in samples[0]}


def _posterior(latents: Latents, stream: str, place: Place) -> Tensor:
    mean = latents.mean[stream]
    return mean + latents.std[stream] * normal_like(mean.shape, *named("posterior", stream), *place)


def named(what: str, stream: str) -> tuple[str, ...]:
    """What is drawn; the main stream's draws are from before there were others."""
    return (what,) if stream == MAIN else (what, stream)
