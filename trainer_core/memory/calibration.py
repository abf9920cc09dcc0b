"""What a recovery adapter is made on: noisy latents and texts of a job's data, at noise levels over the whole range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..randomness import permutation, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..config import JobConfig
    from ..data.cache import TensorCache
    from ..data.progress import Progress
    from ..families.base import Base
    from ..families.conditioning import Conditioning, Streams
    from ..training.batch_source import TrainBatch


@dataclass(frozen=True)
class Probe:
    """What a denoiser is asked for a batch: the arguments of `Base.predict`, on the base's device."""

    noisy: Streams
    t: Tensor
    conditioning: Any


def probes_of(job: JobConfig, base: Base, cache: TensorCache, count: int, progress: Progress) -> list[Probe]:
    """So many batches of a job's data, each with noise of its own.

    Half of them have the captions as they are trained, the others class words in the trigger's place, where the job
    preserves those, and no text: the base must stay what it is for all of them.

    Raises:
        FoundryError: if the data cannot be trained on.
    """
    import torch

    from ..data.prepare import PreparedData
    from ..training.batch_source import BatchSource
    from ..training.experts import stages_of
    from ..training.step import timesteps_of

    job = job.model_copy(
        update={
            "adapter": job.adapter.but(text_encoders=False),
            "regularization": job.regularization.but(blank_preservation=True, preservation_every=1),
            "train": job.train.but(gradient_accumulation=1),
        }
    )
    data = PreparedData(job, base, cache)
    data.encode_texts([], progress)
    data.encode_images(progress)
    source = BatchSource(job, base, data, timesteps_of(job, base), stages_of(job, base.spec))
    batches = [source.get(number)[0].to(base.device) for number in range(count)]
    total = sum(len(batch) for batch in batches)
    # each sample has a part of the whole range to itself
    order = permutation(total, "recovery", job.train.seed)
    times = torch.tensor([(part + uniform("recovery", job.train.seed, part)) / total for part in order])
    probes = []
    for number, (batch, t) in enumerate(zip(batches, times.split([len(one) for one in batches]), strict=True)):
        t = t.to(base.device)
        noisy = {name: base.schedule.add_noise(batch.clean[name], batch.noise[name], t) for name in batch.clean}
        with torch.no_grad():
            probes.append(Probe(noisy, t, base.collate(_texts(batch, number))))
    return probes


def _texts(batch: TrainBatch, number: int) -> Sequence[Conditioning]:
    asked = (batch.captioned, batch.of_class, batch.captioned, batch.blank)[number % 4]
    return asked or batch.captioned
