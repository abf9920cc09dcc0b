"""First frames of videos where ComfyUI's own nodes put them: beside the noise, or in its place.

The picture that CLIP vision sees of a first frame (Wan 2.1, Hunyuan 1.5) is optional in ComfyUI, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sampler_helpers
import comfy.utils
import torch
from torch import Tensor

from . import traits
from .conditioning import KNOWN, Options
from .media import latents_of

BESIDE = {
    "WAN21_I2V": True,
    "HunyuanVideoI2V": True,
    "HunyuanVideoSkyreelsI2V": True,
    "CogVideoX_I2V": True,
    "HunyuanVideo15": False,  # one class makes videos of text too
}
"""Classes with latents of the first frame beside the noisy ones, and whether they always have them."""
IN_PLACE = {"WAN22_T2V", "LTXV", "LTXAV", "CosmosI2V", "CosmosI2VPredict2"}
"""Classes whose noisy latents begin with the clean ones of the first frame, at time 0."""
_BY_MODEL = "Kandinsky5"
"""Puts the first frame in place itself, but hands on what it makes of it, so that graphs replace that afterwards."""
_GREY = {"WAN21_I2V"}
"""Classes that see grey pixels after the first frame; others see no latents."""
_PADDED = {"CosmosI2V", "CosmosI2VPredict2"}
"""Classes whose first frame is encoded with some grey after it, whose latents are not kept."""
_PADDING = 8
"""Frames of grey."""


def always_goes_on(model: Any) -> bool:
    """Whether it makes a video of a first frame, and of nothing else."""
    return BESIDE.get(traits.name_of(model), False)


def can_go_on(model: Any) -> bool:
    """Whether it makes videos with and without a first frame."""
    name = traits.name_of(model)
    return BESIDE.get(name) is False or keeps_first_frame(model)


def keeps_first_frame(model: Any) -> bool:
    """Whether a first frame that it is given is that of the video, so that there is nothing to learn of it."""
    return traits.name_of(model) in {*IN_PLACE, _BY_MODEL}


def first_frame(vae: Any, model: Any, pixels: Tensor) -> Tensor:
    """Normalised latents (C, T, h, w) of a clip (3, T, H, W) in [-1, 1] of which the first frame is known.

    T is 1 where there are none for the rest.
    """
    name = traits.name_of(model)
    clip = (pixels.movedim(0, -1) + 1) / 2
    known = clip[:1]
    if name in _GREY:
        return latents_of(vae, model, torch.cat([known, torch.full_like(clip[1:], 0.5)]))
    if name in _PADDED:
        known = torch.cat([known, torch.full_like(clip[1 : 1 + _PADDING], 0.5)])
    latents = latents_of(vae, model, known)[:, :1]
    if name not in BESIDE:
        return latents
    rest = (len(clip) - 1) // model.latent_format.temporal_downscale_ratio
    return torch.nn.functional.pad(latents, (0, 0, 0, 0, 0, rest))


def options(model: Any, latents: Tensor | None) -> Options:
    """The entries of the conditioning that hold the first frame.

    Args:
        latents: as `first_frame` gives them.
    """
    if latents is None:
        return {}
    name = traits.name_of(model)
    if name in IN_PLACE:
        return {KNOWN: latents[None]}
    as_encoded, mask = model.latent_format.process_out(latents[None]), _made(latents[None, :1])
    if name == _BY_MODEL:
        return {"time_dim_replace": as_encoded, "concat_mask": mask}
    return {"concat_latent_image": as_encoded, "concat_mask": mask}


def finished(model: Any, drawn: Tensor, first: Tensor | None) -> Tensor:
    """Normalised latents (1, C, T, h, w) as drawn, with the first frame where ComfyUI's graphs put it back."""
    if first is None or traits.name_of(model) != _BY_MODEL:
        return drawn
    return torch.cat([first[None, :, :1], drawn[:, :, 1:]], 2)


def _made(like: Tensor) -> Tensor:
    """What is to be made (1) and what is known (0): the first frame."""
    mask = torch.ones_like(like)
    mask[:, :, 0] = 0
    return mask


def begun(first: Tensor, shapes: Sequence[Sequence[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Latents of each stream that hold a first frame and else nothing, and masks of what is to be made.

    Args:
        first: (1, C, 1, h, w)
        shapes: of the streams, with a batch dimension of 1.
    """
    latents = [first.new_zeros(tuple(shape)) for shape in shapes]
    latents[0][:, :, :1] = first
    return latents, [_made(latents[0][:, :1]), *(torch.ones_like(one) for one in latents[1:])]


def known(
    model: Any, x: Tensor, sigma: Tensor, first: Tensor, shapes: Sequence[Sequence[int]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Noisy latents that begin with a first frame, and what the sampler tells the model of it.

    Args:
        x: packed noisy latents of one sample.
        sigma: (1,)
        first: (1, C, 1, h, w)
        shapes: of the streams, with a batch dimension of 1.
    """
    latents, masks = begun(first, shapes)
    masks = [
        comfy.sampler_helpers.prepare_mask(mask, tuple(shape), x.device)
        for mask, shape in zip(masks, shapes, strict=True)
    ]
    if len(shapes) > 1:
        image, mask = (comfy.utils.pack_latents(streams)[0] for streams in (latents, masks))
    else:
        (image,), (mask,) = latents, masks
    clean = model.scale_latent_inpaint(
        x=x, sigma=sigma, noise=torch.zeros_like(x), latent_image=image, denoise_mask=mask
    )
    return x * mask + clean * (1 - mask), {"latent_image": image, "denoise_mask": mask}
