"""Loss on pictures that are not trained on, at fixed noise and fixed times.

Nothing in it depends on the job's seed, its timestep type or its loss weights, so the numbers of two runs on the same
pictures, and of two checkpoints of one run, can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..data.variants import Variant
from ..errors import Interrupted
from ..objective.losses import elementwise, sample_means
from ..randomness import normal_like
from .step import Draws, Objective

if TYPE_CHECKING:
    from ..data.scan import Sample


def validation_times(draws: int) -> list[float]:
    """The middles of equal parts of [0, 1]."""
    return [(k + 0.5) / draws for k in range(draws)]


def validation_loss(objective: Objective, draws: int, batch_size: int, should_stop: Callable[[], bool]) -> float:
    """Mean squared error over all validation samples and `draws` times each, with the adapter as it is, at strength 1.

    Each sample is seen unflipped, in its centre crop, with its first caption and the mean of its latents.

    Raises:
        Interrupted: when `should_stop` says so, between two batches.
    """
    pairs = [
        (sample, k) for sample in sorted(objective.data.validation, key=lambda one: one.size) for k in range(draws)
    ]
    times = validation_times(draws)
    objective.adapter.set_strength(1.0)
    objective.adapter.seed_dropout()  # none
    objective.denoiser.eval()
    total = 0.0
    try:
        with torch.no_grad():
            for batch in _batches(pairs, batch_size):
                if should_stop():
                    raise Interrupted
                total += _losses(objective, batch, times).sum().item()
    finally:
        objective.denoiser.train()
    return total / len(pairs)


def _batches(pairs: list[tuple[Sample, int]], batch_size: int) -> list[list[tuple[Sample, int]]]:
    """Runs of one size, cut into batches."""
    batches: list[list[tuple[Sample, int]]] = []
    for pair in pairs:
        if batches and len(batches[-1]) < batch_size and batches[-1][0][0].size == pair[0].size:
            batches[-1].append(pair)
        else:
            batches.append([pair])
    return batches


def _losses(objective: Objective, batch: list[tuple[Sample, int]], times: list[float]) -> torch.Tensor:
    """(N,)"""
    device, schedule = objective.base.device, objective.base.schedule
    latents = [objective.data.latents(sample, Variant()) for sample, _ in batch]
    noise = [
        normal_like(one.mean.shape, "validation", sample.item.key, k)
        for one, (sample, k) in zip(latents, batch, strict=True)
    ]
    draws = Draws(
        clean=torch.stack([one.mean for one in latents]).to(device),
        noise=torch.stack(noise).to(device),
        t=torch.tensor([times[k] for _, k in batch]).to(device),
        captions=[objective.data.validation_text(sample) for sample, _ in batch],
        class_captions=[],
        mask=None,
        guidance=None,
        controls=tuple(torch.stack(group).to(device) for group in zip(*(one.controls for one in latents), strict=True)),
        sizes=torch.tensor([one.sizes for one in latents], dtype=torch.float32).to(device),
    )
    predicted = objective.predict(draws, schedule.noised(draws.clean, draws.noise, draws.t), draws.captions)
    return sample_means(elementwise(predicted, schedule.target(draws.clean, draws.noise, draws.t)))
