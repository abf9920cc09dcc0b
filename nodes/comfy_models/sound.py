"""Sound beside a video: the second stream of models that have one, by an audio VAE of ComfyUI.

Without an audio VAE such a model trains on pictures alone, as ComfyUI samples it with an empty video and no sound.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...trainer_core.errors import BaseModelError
from ...trainer_core.families.conditioning import AUDIO, Stream
from . import traits
from .loading import on_cpu

_WITH_SOUND = {"LTXAV"}


def check(model: Any, vae: Any) -> None:
    """Whether a model has a use for an audio VAE, where one is given, and the VAE is one.

    Raises:
        BaseModelError: if not.
    """
    if vae is None:
        return
    if traits.name_of(model) not in _WITH_SOUND:
        raise BaseModelError(f"audio_vae: {traits.name_of(model)} makes no sound that is trained. Take the link off")
    if not hasattr(vae.first_stage_model, "num_of_latents_from_frames"):
        raise BaseModelError("audio_vae: this VAE is none for a video's sound. Link the one of Load LTXV Audio VAE")


def sample_rate(vae: Any) -> int:
    """Samples per second that are encoded."""
    return int(getattr(vae, "audio_sample_rate", 44100))


def stream(vae: Any) -> Stream:
    """The sound's latents (C, T, bins)."""
    return Stream(AUDIO, channels=vae.latent_channels, factor=1)


def shape(vae: Any, frames: int, rate: float) -> tuple[int, int, int]:
    """Of the latents of so many frames, at so many a second."""
    network = vae.first_stage_model
    length = max(1, network.num_of_latents_from_frames(frames, rate))
    return vae.latent_channels, length, network.latent_frequency_bins


def encoded(vae: Any, sound: Tensor, frames: int) -> Tensor:
    """Normalised latents (C, T, bins) of a clip's sound (2, samples) in [-1, 1], as long as ComfyUI makes them."""
    with torch.no_grad():
        found = on_cpu(vae.encode(sound[None].movedim(1, -1)))[0]
    length = shape(vae, frames, frames * sample_rate(vae) / sound.shape[-1])[1]
    missing = length - found.shape[1]  # encoders round otherwise
    return found[:, :length] if missing <= 0 else torch.cat([found, found[:, -1:].expand(-1, missing, -1)], 1)
