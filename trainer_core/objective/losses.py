"""Losses, in fp32: elementwise, then masked and averaged to one number per sample."""

from __future__ import annotations

import torch
from torch import Tensor

LOSS_TYPES = ("mse", "mae", "huber", "smooth_l1")


def elementwise(prediction: Tensor, target: Tensor, kind: str = "mse", delta: float = 1.0) -> Tensor:
    """The loss of each element, fp32, with d = prediction - target.

    mse: d². mae: |d|. smooth_l1 (Girshick 2015, δ = β): d²/2δ up to |d| = δ, then |d| - δ/2. huber: δ times
    smooth_l1, as in torch: d²/2, then δ(|d| - δ/2).

    Raises:
        ValueError: for another kind.
    """
    prediction, target = prediction.float(), target.float()
    if kind == "mse":
        return (prediction - target).square()
    if kind == "mae":
        return (prediction - target).abs()
    if kind == "huber":
        return torch.nn.functional.huber_loss(prediction, target, reduction="none", delta=delta)
    if kind == "smooth_l1":
        return torch.nn.functional.smooth_l1_loss(prediction, target, reduction="none", beta=delta)
    raise ValueError(f"no such loss: {kind!r}; there are {', '.join(LOSS_TYPES)}")


def sample_means(losses: Tensor, mask: Tensor | None = None) -> Tensor:
    """One number per sample (N,) of elementwise losses (N, C, ...).

    `mask` (N, 1, ...) holds weights whose mean over each picture is 1, so a mask changes what counts and not how much
    a picture counts.
    """
    return (losses if mask is None else losses * mask).flatten(1).mean(1)
