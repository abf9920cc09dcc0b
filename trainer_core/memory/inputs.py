"""What a step is given, as far as its memory depends on it: the largest batch that a job's data can make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from ..data.encoded import Latents
from ..data.prepare import samples_of
from ..families.conditioning import Conditioning
from ..training.batch_source import BatchSource, TrainBatch
from ..training.experts import stages_of
from ..training.step import timesteps_of

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..data.prepare import PreparedData
    from ..data.scan import Sample
    from ..data.variants import Variant
    from ..families.base import Base
    from ..families.conditioning import TextEmbedding


def largest_batches(job: JobConfig, base: Base, data: PreparedData) -> list[TrainBatch]:
    """Micro-batches of the largest sample alone: two, where an update has several.

    Raises:
        CacheMiss: if something is not in the cache any more.
    """
    source = BatchSource(job, base, data, timesteps_of(job, base), stages_of(job, base.spec))
    largest = max((one for group in data.samples for one in group), key=_extent)
    together = [largest] * job.train.batch_size
    return [source.micro_batch(together, 0, {}) for _ in range(min(job.train.gradient_accumulation, 2))]


def described(
    job: JobConfig,
    base: Base,
    text: Callable[[str], TextEmbedding | None],
    samples: Sequence[Sequence[Sample]] | None = None,
) -> PreparedData:
    """A job's data as far as its files' headers tell it: sizes, without pixels.

    Args:
        text: a text's embedding, of the right shape.
        samples: of each data set, where there are no files.

    Raises:
        DatasetError: if a data set cannot be trained on.
    """
    spec = base.spec
    samples = samples or [samples_of(dataset, spec.bucket_divisor, k, spec) for k, dataset in enumerate(job.datasets)]
    trained = [group if job.datasets[k].role != "validation" else [] for k, group in enumerate(samples)]
    return cast("PreparedData", _Described(job, base, trained, text))


class _Described:
    """What a batch source asks of prepared data."""

    def __init__(
        self,
        job: JobConfig,
        base: Base,
        samples: Sequence[Sequence[Sample]],
        text: Callable[[str], TextEmbedding | None],
    ) -> None:
        self.samples, self.datasets = samples, job.datasets
        self._base, self._text = base, text

    def latents(self, sample: Sample, _variant: Variant) -> Latents:
        spec, dataset = self._base.spec, self.datasets[sample.dataset]
        width, height = sample.size
        shapes = self._base.latent_shapes(width, height, sample.frames)
        mean = {name: torch.zeros(shape) for name, shape in shapes.items()}
        main = mean[spec.main.name]
        return Latents(
            mean,
            {name: torch.ones_like(value) for name, value in mean.items()},
            (height, width, 0, 0, height, width),
            mask=torch.ones_like(main[:1]) if dataset.masked else None,
            controls=tuple(torch.zeros_like(main) for _ in dataset.control_folders),
            frame_rate=spec.frame_rate,
            first_frame=torch.zeros_like(main) if dataset.first_frame else None,
        )

    def texts_of(self, sample: Sample) -> list[str]:
        return list(sample.item.captions)

    def conditioning(self, _sample: Sample, _variant: Variant, latents: Latents, *texts: str) -> list[Conditioning]:
        return [
            Conditioning(
                text,
                self._text(text),
                controls=latents.controls,
                time_ids=latents.time_ids,
                frame_rate=latents.frame_rate,
                first_frame=latents.first_frame,
            )
            for text in texts
        ]


def _extent(sample: Any) -> tuple[int, int]:
    return math.prod(sample.size) * sample.frames, len(sample.item.controls)
