"""Control images where ComfyUI's own nodes put them: in the conditioning, and before the text encoder's eyes.

Which node prepares them ComfyUI leaves to the user's workflow; here it is a fact of the architecture. A model that can
edit is also one that only draws: without control images its prompts are encoded as any others.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...trainer_core.errors import BaseModelError
from . import traits
from .conditioning import Options
from .media import latents_of

REFERENCES, CONCATENATED = "reference_latents", "concat_latent_image"
_MASK = "concat_mask"
MOST_REFERENCES = 3
MEGAPIXEL = 1024 * 1024
_SEEN = 384
"""Edge of the square that has as many pixels as text encoders are shown of a picture."""

Picture = Tensor
"""(1, H, W, 3) in [0, 1], ComfyUI's IMAGE."""
Conditioned = list[list[Any]]
"""What CLIP gives for a prompt: `[[cross_attn, options]]`."""
Ask = Callable[[Any, str, Sequence[Picture]], Conditioned]


def area(pixels: int, step: int = 1, method: str = "area") -> Callable[[Picture], Picture]:
    """Scales a picture to about so many pixels of its own aspect, width and height being multiples of `step`."""

    def scale(picture: Picture) -> Picture:
        height, width = picture.shape[1:3]
        by = math.sqrt(pixels / (width * height))
        return _scaled(picture, round(width * by / step) * step, round(height * by / step) * step, method)

    return scale


def _scaled(picture: Picture, width: int, height: int, method: str, crop: str = "disabled") -> Picture:
    found: Picture = comfy.utils.common_upscale(picture.movedim(-1, 1), width, height, method, crop)
    return found.movedim(1, -1)


_KONTEXT = (672, 688, 720, 752, 800, 832, 880, 944, 1024, 1104, 1184, 1248, 1328, 1392, 1456, 1504, 1568)
"""Widths that FLUX.1 Kontext was trained on; the heights are the same numbers from the other end."""


def kontext(picture: Picture) -> Picture:
    """Scales and crops it to the nearest of Kontext's sizes, as `FluxKontextImageScale` does."""
    height, width = picture.shape[1:3]
    sizes = zip(_KONTEXT, reversed(_KONTEXT), strict=True)
    _, wide, high = min((abs(width / height - w / h), w, h) for w, h in sizes)
    return _scaled(picture, wide, high, "lanczos", "center")


_JOY = {512: 1792, 576: 1600, 640: 1472, 704: 1344, 768: 1216, 832: 1152, 896: 1088, 960: 1024}
"""JoyImage's sizes: a short edge, and the least long edge to it …"""
_JOY_LONGEST = {512: 2048, 576: 1792, 640: 1600, 704: 1472, 768: 1344, 832: 1216, 896: 1152, 960: 1088}
"""… and the most, in steps of 64; each upright and lying, and 1024 x 1024."""


def joy_sizes() -> list[tuple[int, int]]:
    """Height and width of the pictures that JoyImage was trained on."""
    lying = [(short, long) for short, least in _JOY.items() for long in range(least, _JOY_LONGEST[short] + 1, 64)]
    return sorted([*lying, *((long, short) for short, long in lying), (1024, 1024)])


def joy(picture: Picture) -> Picture:
    """Scales and crops it to the nearest of JoyImage's sizes."""
    height, width = picture.shape[1:3]
    high, wide = min(joy_sizes(), key=lambda size: abs(size[0] / size[1] - height / width))
    return _scaled(picture, wide, high, "bilinear", "center")


def at_most(edge: int, method: str) -> Callable[[Picture], Picture]:
    """Scales a picture down so that its longer edge has at most so many pixels."""

    def scale(picture: Picture) -> Picture:
        height, width = picture.shape[1:3]
        if max(width, height) <= edge:
            return picture
        by = edge / max(width, height)
        return _scaled(picture, max(1, round(width * by)), max(1, round(height * by)), method)

    return scale


# --- what text encoders are asked -------------------------------------------------------------------------------------


def plain(clip: Any, prompt: str, pictures: Sequence[Picture] = (), **more: Any) -> Conditioned:
    """The prompt, with the pictures where there are any; the tokenizer knows where they belong."""
    if pictures:
        more["images"] = list(pictures)
    found: Conditioned = clip.encode_from_tokens_scheduled(clip.tokenize(prompt, **more))
    return found


_EDIT_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def numbered(clip: Any, prompt: str, pictures: Sequence[Picture]) -> Conditioned:
    """As Qwen-Image-Edit 2509 and its successors were trained: each picture has a number in the prompt."""
    named = "".join(f"Picture {k}: <|vision_start|><|image_pad|><|vision_end|>" for k in range(1, len(pictures) + 1))
    return plain(clip, named + prompt, pictures, llama_template=_EDIT_TEMPLATE)


def blind_if_blank(clip: Any, prompt: str, pictures: Sequence[Picture]) -> Conditioned:
    """Boogu: what guidance keeps away from, the blank prompt, has no pictures in its text."""
    return plain(clip, prompt, pictures if prompt else ())


def never_empty(clip: Any, prompt: str, pictures: Sequence[Picture]) -> Conditioned:
    """Mage: a blank prompt about pictures is a space."""
    return plain(clip, prompt or " ", pictures)


def around_latents(clip: Any, prompt: str, pictures: Sequence[Picture]) -> Conditioned:
    """Z-Image Omni: texts of their own stand before, between and behind the reference latents."""
    between = ["<|vision_end|><|vision_start|>"] * (len(pictures) - 1)
    texts = ["<|im_start|>user\n<|vision_start|>", *between, "<|vision_end|><|im_end|>"]
    template = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n<|vision_start|>"
    cross, options = plain(clip, prompt, llama_template=template)[0]
    embedded = [plain(clip, text, llama_template="{}")[0][0] for text in texts]
    return [[cross, {**options, "reference_latents_text_embeds": embedded}]]


# --- how each architecture is given them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """What becomes of the control images of a model that takes reference latents."""

    reference: Callable[[Picture], Picture] | None = area(MEGAPIXEL)
    """What the VAE encodes; None: the picture at the target's size."""
    ask: Ask | None = None
    """How a prompt about pictures is encoded; None: the text encoder sees none."""
    seen: Callable[[Picture], Picture] = area(_SEEN * _SEEN)
    """What the text encoder looks at."""
    most: int = MOST_REFERENCES
    options: Options = field(default_factory=dict)
    """What else belongs into the conditioning."""


_EDITS = {
    "Flux": Edit(kontext),
    "Flux2": Edit(area(MEGAPIXEL, method="lanczos")),
    "LongCatImage": Edit(ask=plain, seen=area(MEGAPIXEL), most=1, options={"reference_latents_method": "index"}),
    "QwenImage": Edit(area(MEGAPIXEL, 8), numbered),
    "Krea2": Edit(area(MEGAPIXEL, 8), numbered, options={"reference_latents_method": "index_timestep_zero"}),
    "Boogu": Edit(area(MEGAPIXEL, 16), blind_if_blank),
    "MageFlow": Edit(None, never_empty, at_most(_SEEN, "bicubic")),
    "JoyImage": Edit(joy, plain, joy),
    "ZImage": Edit(area(MEGAPIXEL, 8), around_latents),
    "HiDreamO1": Edit(lambda picture: picture),
}
"""By the class in `comfy.supported_models`; `Edit()` is what the node ReferenceLatent and 1 megapixel do for others.

Nodes: FluxKontextImageScale; TextEncodeQwenImageEdit for LongCat; TextEncodeQwenImageEditPlus for Qwen and Krea 2;
TextEncodeBooguEdit; TextEncodeMageFlowEdit; TextEncodeJoyImageEdit; TextEncodeZImageOmni without an image encoder;
HiDreamO1ReferenceImages. Qwen-Image-Edit of August 2025 has the same weights as its successors' in all that can be told
from a file, and is asked as they are.
"""


def key(model: Any) -> str | None:
    """Where the model takes control images in ComfyUI's conditioning; None if it takes none.

    Pictures only: what a video model is given beside noise is its first frame.
    """
    if traits.is_video(model):
        return None
    references = traits.reads(model, REFERENCES) and _uses_references(model.diffusion_model)
    concatenated = bool(getattr(model, "concat_keys", ())) or traits.reads(model, CONCATENATED)
    if references and concatenated:  # FLUX: those with wider inputs concatenate
        return CONCATENATED if _wider(model, 1) else REFERENCES
    return REFERENCES if references else CONCATENATED if concatenated else None


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
    return "masked_image" in getattr(model, "concat_keys", ()) or (traits.reads(model, _MASK) and _wider(model, 2))


def _wider(model: Any, times: int) -> bool:
    """Whether it takes more than so many times the channels that it gives."""
    config = model.model_config.unet_config
    return bool(config["in_channels"] > times * config.get("out_channels", config["in_channels"]))


def edit_of(model: Any) -> Edit | None:
    """How a model with reference latents is given them; None if it has none."""
    return _EDITS.get(traits.name_of(model), Edit()) if key(model) == REFERENCES else None


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
    images = [_image(one) for one in pictures]
    edit = edit_of(model)
    if edit is not None:
        references = images if edit.reference is None else [edit.reference(image) for image in images]
        if traits.name_of(model) == "HiDreamO1":  # it takes the pictures themselves
            return tuple(image[0] for image in references)
        return tuple(latents_of(vae, model, image) for image in references)
    if not fills(model):
        return tuple(latents_of(vae, model, image) for image in images)
    if len(images) != 2:
        raise BaseModelError(
            "this model paints into masked pictures: it needs two control images for each picture, first the picture "
            "to paint into, then its mask (white where it is painted)"
        )
    picture, drawn = (_scaled(image, *size, "area", "center") for image in images)
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
    if edit is not None and traits.name_of(model) == "HiDreamO1":
        return {REFERENCES: [one[None] for one in controls]}
    latents = [model.latent_format.process_out(one[None]) for one in (controls[:1] if edit is None else controls)]
    if edit is not None:
        return {REFERENCES: latents, **edit.options}
    return {CONCATENATED: latents[0], **({_MASK: controls[1][None]} if fills(model) else {})}


def _image(pixels: Tensor) -> Picture:
    return ((pixels + 1) / 2).movedim(0, -1)[None].to(torch.float32)
