"""What is measured of drawn pictures: functions of their embeddings, rows of (N, D), and of nothing else.

Distances are Euclidean. All measures are ratios of distances, so that they mean the same with every embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def distances(first: Tensor, second: Tensor) -> Tensor:
    """(N, D), (M, D) → (N, M): ‖x_i - y_j‖."""
    return (first[:, None] - second[None]).norm(dim=-1)


def spacing(pictures: Tensor) -> float | None:
    """How far a picture of a set lies from its nearest fellow: the mean over the set.

    Equal pictures are no fellows, else a set with doubles would have none. None if no two differ.
    """
    between = distances(pictures, pictures)
    between = between.masked_fill(between < 1e-6, float("inf"))
    nearest = between.amin(1) if len(pictures) else between
    nearest = nearest[nearest.isfinite()]
    return float(nearest.mean()) if len(nearest) else None


def spread(pictures: Tensor) -> float | None:
    """Mean distance of two pictures of a set. None if no two differ."""
    count = len(pictures)
    mean = float(distances(pictures, pictures).sum()) / (count * (count - 1)) if count > 1 else 0.0
    return mean if mean > 1e-6 else None


def likeness(drawn: Tensor, training: Tensor, unit: float) -> float:
    """How near drawn pictures come to the training pictures: the mean of u / (u + d), in (0, 1].

    d is the distance to the nearest training picture (as in tests for copies of the data, Meehan et al. 2020,
    https://arxiv.org/abs/2004.05675), u the training pictures' own `spacing`: 0.5 is as near as these are to each
    other, 1 a copy, 0 nothing alike.
    """
    nearest = distances(drawn, training).amin(1)
    return float((unit / (unit + nearest)).mean())


def variety(drawn: Tensor, unit: float) -> float | None:
    """The share of drawn pictures that differ: the Vendi score over their number, in [1 / N, 1].

    Vendi score (Friedman and Dieng 2023, https://arxiv.org/abs/2210.02410): exp(-Σ λ log λ), λ the eigenvalues of
    K / N; here K = exp(-d² / 2u²). 1: all differ; 1 / N: all are the same. None of fewer than two.

    Args:
        unit: u, a distance at which pictures clearly differ.
    """
    import torch

    count = len(drawn)
    if count < 2:
        return None
    kernel = (-distances(drawn, drawn).double().square() / (2 * unit**2)).exp()
    shares = torch.linalg.eigvalsh(kernel / count)
    shares = shares[shares > 0]  # rounding makes some of those that are 0 negative
    return float((-(shares * shares.log()).sum()).exp()) / count


def leak(drawn: Tensor, by_base: Tensor, unit: float) -> float:
    """How far the LoRA changes pictures whose prompts lack the trigger: the mean of ‖x_i - b_i‖ / u, from 0 on.

    x_i and b_i are drawn from the same prompt and seed, with the LoRA and by the base alone; u is the `spread` of the
    base's pictures: 0 is the same picture, 1 as different as pictures of two prompts are.
    """
    return float((drawn - by_base).norm(dim=-1).mean()) / unit
