"""Control images where ComfyUI's own nodes put them: in the conditioning, and before the text encoder's eyes.

A model that can edit is also one that only draws: without control images its prompts are encoded as any others.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...trainer_core.errors import BaseModelError
from . import traits
from .conditioning import Options
from .edits import EDITS, Conditioned, Edit, Picture, plain, scaled
from .media import latents_of

REFERENCES, CONCATENATED = "reference_latents", "concat_latent_image"
_MASK = "concat_mask"


def key(model: Any) -> str | None:
    """Where the model takes control images in ComfyUI's conditioning; None if it takes none.

    Pictures only: what a video model is given beside noise is its first frame.
    """
    if traits.is_video(model):
        return None
    beside_channels = bool(model.concat_keys) or traits.reads(model, CONCATENATED, ["concat_cond"])
    if (beside_channels and _wider(model, 1)) or traits.reads(model, CONCATENATED, ["extra_conds"]):
        return CONCATENATED
    references = traits.reads(model, REFERENCES) and _uses_references(model.diffusion_model)
    return REFERENCES if references else None


def _uses_references(denoiser: Any) -> bool:
    """Chroma's class reads them with FLUX's, and its denoiser drops them."""
    functions = (getattr(type(denoiser), name, None) for name in ("forward", "_forward"))
    return any(
        name.startswith("ref_") for function in functions if function for name in inspect.signature(function).parameters
    )


def fills(model: Any) -> bool:
    """Whether it paints into a masked picture: its control images are the picture, and the mask (white is painted)."""
    if key(model) != CONCATENATED:
        return False
    return "masked_image" in model.concat_keys or (traits.reads(model, _MASK) and _wider(model, 2))


def _wider(model: Any, times: int) -> bool:
    """Whether it takes more than so many times the channels that it gives."""
    config = model.model_config.unet_config
    return bool(config["in_channels"] > times * config.get("out_channels", config["in_channels"]))


def edit_of(model: Any) -> Edit | None:
    """How a model with reference latents is given them; None if it has none."""
    return EDITS.get(traits.name_of(model), Edit()) if key(model) == REFERENCES else None


def most(model: Any) -> int:
    """How many control images it takes."""
    if (edit := edit_of(model)) is not None:
        return edit.most
    return 0 if key(model) is None else 2 if fills(model) else 1


def text_sees(model: Any) -> bool:
    """Whether a prompt's embedding depends on the control images."""
    edit = edit_of(model)
    return edit is not None and edit.ask is not None


def have_own_size(model: Any) -> bool:
    """Whether it makes what it needs of whole control images; else they have the target's size."""
    edit = edit_of(model)
    return fills(model) if edit is None else edit.reference is not None


def conditioning(clip: Any, model: Any, prompt: str, pictures: Sequence[Tensor]) -> Conditioned:
    """A prompt's embedding, as the model's own node makes it where there are control images.

    Args:
        pictures: (3, H, W) in [-1, 1].
    """
    edit = edit_of(model)
    if edit is None or edit.ask is None or not pictures:
        return plain(clip, prompt)
    return edit.ask(clip, prompt, [edit.seen(_image(one)) for one in pictures])


def encoded(vae: Any, model: Any, pictures: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """What `options` puts into the conditioning, without batch dimensions.

    Args:
        pictures: (3, H, W) in [-1, 1].
        size: the target's width and height.

    Raises:
        BaseModelError: for a model that paints into masked pictures, if there is no mask.
    """
    if not pictures:
        return ()
    images = [_image(one) for one in pictures]
    edit = edit_of(model)
    if edit is not None:
        references = images if edit.reference is None else [edit.reference(image) for image in images]
        return tuple(latents_of(vae, model, image) for image in references)
    if not fills(model):
        return tuple(latents_of(vae, model, image) for image in images)
    if len(images) != 2:
        raise BaseModelError(
            "this model paints into masked pictures: it needs two control images for each picture, first the picture "
            "to paint into, then its mask (white where it is painted)"
        )
    picture, drawn = (scaled(image, *size, "area", "center") for image in images)
    mask = drawn.mean(-1)
    hidden = (picture - 0.5) * (1 - mask.round()[..., None]) + 0.5
    return latents_of(vae, model, hidden), mask


def options(model: Any, controls: Sequence[Tensor]) -> Options:
    """The entries of the conditioning that hold the control images: latents as the VAE gives them.

    Args:
        controls: as `encoded` gives them.
    """
    if not controls:
        return {}
    edit = edit_of(model)
    latents = [model.latent_format.process_out(one[None]) for one in (controls[:1] if edit is None else controls)]
    if edit is not None:
        return {REFERENCES: latents, **edit.options}
    return {CONCATENATED: latents[0], **({_MASK: controls[1][None]} if fills(model) else {})}


def _image(pixels: Tensor) -> Picture:
    """As LoadImage gives it, to the bit: nodes scale with Pillow, which drops what is not a whole number of 255."""
    return ((pixels.movedim(0, -1)[None].float() + 1) * 127.5).round() / 255
