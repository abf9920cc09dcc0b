"""Pixels and latents by a VAE of ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .loading import on_cpu
from .traits import has_time


def encoded(vae: Any, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the normalised latents of one picture or video, each without a batch dimension.

    The deviation is 0 for VAEs that tell none; ComfyUI's own encoding is the mean.

    Args:
        pixels: (3, H, W) or (3, T, H, W) in [-1, 1].
    """
    frames = pixels[:, None] if pixels.dim() == 3 else pixels
    with torch.no_grad(), _moments(vae.first_stage_model) as moments:
        latent = on_cpu(vae.encode(((frames + 1) / 2).permute(1, 2, 3, 0)))
    shaped, normalised = _fit(latent, model), model.latent_format.process_in
    mean = normalised(shaped)
    if len(moments) != 1 or moments[0].shape[1:] != (2 * latent.shape[1], *latent.shape[2:]):
        return mean[0], torch.zeros_like(mean[0])
    log_variance = _fit(moments[0].chunk(2, dim=1)[1].clamp(-30.0, 20.0), model)
    spread = normalised(shaped + torch.exp(0.5 * log_variance)) - mean
    return mean[0], spread.abs()[0]


def latents_of(vae: Any, model: Any, picture: Tensor) -> Tensor:
    """Normalised latents (C, …) of a picture (1, H, W, 3) in [0, 1], as a node gives it to a VAE."""
    with torch.no_grad():
        latent = on_cpu(vae.encode(picture))
    found: Tensor = model.latent_format.process_in(_fit(latent, model))[0]
    return found


def decoded(vae: Any, model: Any, latents: Tensor) -> Tensor:
    """Normalised latents (1, C, …) → pixels (3, T, H, W) in [-1, 1], on the CPU."""
    with torch.no_grad():
        pixels = on_cpu(vae.decode(model.latent_format.process_out(latents)))
    frames = pixels.reshape(-1, *pixels.shape[-3:])[..., :3]
    return frames.permute(3, 0, 1, 2).clamp(0, 1) * 2 - 1


def _fit(latent: Tensor, model: Any) -> Tensor:
    """With the axis of time that the model expects, where a picture's VAE gives none."""
    return latent[:, :, None] if has_time(model) and latent.dim() == 4 else latent


@contextmanager
def _moments(vae: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what a Gaussian VAE makes of its input: mean and log of the variance (N, 2C, …)."""
    caught: list[Tensor] = []
    regularization = getattr(vae, "regularization", None)
    if not isinstance(regularization, nn.Module) or "Gaussian" not in type(regularization).__name__:
        yield caught
        return
    hook = regularization.register_forward_pre_hook(lambda _module, args: caught.append(on_cpu(args[0])))
    try:
        yield caught
    finally:
        hook.remove()
