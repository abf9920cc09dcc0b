"""Targets that aim further than the data: differential guidance, and contrastive guidance for distilled models."""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import per_sample


def differential_target(prediction: Tensor, target: Tensor, scale: float) -> Tensor:
    """p + s · (target - p), p being the prediction, detached: a target beyond the target.

    With d = prediction - target, the squared loss becomes s²·d² and its gradient s times the usual one (the inner p is
    constant), the same for every element. What that changes: how much the loss weighs against preservation terms and
    the clipping norm; AdamW alone hardly notices. The absolute loss's gradient stays as it is.
    """
    prediction = prediction.detach()
    return prediction + scale * (target - prediction)


def contrastive_target(target: Tensor, promptless: Tensor, scale: Tensor, project: bool = False) -> Tensor:
    """u + g · (target - u): what guidance g would make of the target, u being the model's promptless prediction.

    A guidance-distilled model predicts the guided velocity itself; trained on the plain target it would lose that.

    Args:
        target, promptless: (N, ...).
        scale: g, (N,).
        project: replace u by α u with α = <target, u> / |u|², the best fit of the target (CFG-Zero*, Fan et al. 2025).
    """
    u = promptless.detach().float()
    if project:
        dot = (target * u).flatten(1).sum(1)
        u = per_sample(dot / u.square().flatten(1).sum(1).clamp_min(torch.finfo(u.dtype).tiny), u) * u
    return u + per_sample(scale, u) * (target - u)


def contrastive_scale(scale: float, t: Tensor, schedule: str) -> Tensor:
    """g at times t (N,): the same everywhere (`constant`), or falling to 1 without noise: 1 + (g - 1) t (`sigma`)."""
    return torch.full_like(t, scale) if schedule == "constant" else 1 + (scale - 1) * t
