"""Loss on pictures that are not trained on, at fixed noise and fixed times.

Nothing in it depends on the job's seed, its timestep type or its loss weights, so the numbers of two runs on the same
pictures, and of two checkpoints of one run, can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..data.variants import Variant
from ..families.conditioning import each
from ..randomness import normal_like
from .batch_source import heard, named, stacked

if TYPE_CHECKING:
    from ..data.prepare import PreparedData
    from ..data.scan import Sample
    from .experts import Experts
    from .step import Objective

    Pair = tuple[Sample, float]
    """A sample and a time."""


def validation_times(draws: int) -> list[float]:
    """The middles of equal parts of [0, 1]."""
    return [(k + 0.5) / draws for k in range(draws)]


def validation_loss(
    experts: Experts, data: PreparedData, draws: int, batch_size: int, on_batch: Callable[[], None]
) -> float:
    """Mean squared error over all validation samples and `draws` times each, with the adapters as they are.

    `on_batch` is called before each batch, and ends the measurement by raising.

    Each sample is seen unflipped, in its centre crop, with its first caption and the mean of its latents.

    Raises:
        CacheMiss: if something is not in the cache any more.
    """
    times = validation_times(draws)
    ordered = sorted(data.validation, key=lambda one: one.shape)
    groups = _by_expert([(sample, t) for sample in ordered for t in times], experts)
    total = 0.0
    with torch.no_grad():
        for pairs in groups:
            for batch in _batches(pairs, batch_size):
                on_batch()
                total += _losses(experts.at(batch[0][1]).objective, data, batch, times).sum().item()
    return total / (len(ordered) * draws)


def _by_expert(pairs: list[Pair], experts: Experts) -> list[list[Pair]]:
    """Those of each expert together, so that each comes to the device once."""
    groups: dict[str, list[Pair]] = {one.name: [] for one in experts}
    for pair in pairs:
        groups[experts.name_at(pair[1])].append(pair)
    return list(groups.values())


def _batches(pairs: list[Pair], batch_size: int) -> list[list[Pair]]:
    """Runs of one size, cut into batches."""
    batches: list[list[Pair]] = []
    for pair in pairs:
        if batches and len(batches[-1]) < batch_size and batches[-1][0][0].shape == pair[0].shape:
            batches[-1].append(pair)
        else:
            batches.append([pair])
    return batches


def _losses(objective: Objective, data: PreparedData, batch: list[Pair], times: list[float]) -> torch.Tensor:
    """(N,)"""
    device, schedule = objective.base.device, objective.base.schedule
    latents = [data.latents(sample, Variant()) for sample, _ in batch]
    clean = stacked([one.mean for one in latents])
    noise = stacked(
        [
            {
                name: normal_like(mean.shape, *named("validation", name), sample.item.key, times.index(t))
                for name, mean in one.mean.items()
            }
            for one, (sample, t) in zip(latents, batch, strict=True)
        ]
    )
    clean, noise = ({name: value.to(device) for name, value in one.items()} for one in (clean, noise))
    t = torch.tensor([t for _, t in batch]).to(device)
    prompts = [
        data.conditioning(sample, Variant(), one, data.validation_text(sample))[0]
        for one, (sample, _) in zip(latents, batch, strict=True)
    ]
    noisy, targets = (
        each(lambda x, e: function(x, e, t), clean, noise)  # noqa: B023 - called at once
        for function in (schedule.add_noise, schedule.target)
    )
    sounding = {name: weights.to(device) for name, weights in heard(latents).items()}
    return objective.losses(objective.predict(noisy, t, prompts), targets, sounding)
