"""What becomes of control images before a model takes them: a fact of each architecture.

ComfyUI leaves it to the user's workflow; these are the nodes of its templates and what they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.utils
from torch import Tensor

from .conditioning import Options

MOST_REFERENCES = 3
MEGAPIXEL = 1024 * 1024
_SEEN = 384
"""Edge of the square that has as many pixels as text encoders are shown of a picture."""

Picture = Tensor
"""(1, H, W, 3) in [0, 1], ComfyUI's IMAGE."""
Scale = Callable[[Picture], Picture]
Conditioned = list[list[Any]]
"""What CLIP gives for a prompt: `[[cross_attn, options]]`."""
Ask = Callable[[Any, str, Sequence[Picture]], Conditioned]


def area(pixels: int, step: int = 1, method: str = "area") -> Scale:
    """Scales a picture to about so many pixels of its own aspect, width and height being multiples of `step`."""

    def scale(picture: Picture) -> Picture:
        height, width = picture.shape[1:3]
        by = math.sqrt(pixels / (width * height))
        return scaled(picture, round(width * by / step) * step, round(height * by / step) * step, method)

    return scale


def scaled(picture: Picture, width: int, height: int, method: str, crop: str = "disabled") -> Picture:
    found: Picture = comfy.utils.common_upscale(picture.movedim(-1, 1), width, height, method, crop)
    return found.movedim(1, -1)


_KONTEXT = (672, 688, 720, 752, 800, 832, 880, 944, 1024, 1104, 1184, 1248, 1328, 1392, 1456, 1504, 1568)
"""Widths that FLUX.1 Kontext was trained on; the heights are the same numbers from the other end."""


def kontext(picture: Picture) -> Picture:
    """Scales and crops it to the nearest of Kontext's sizes, as `FluxKontextImageScale` does."""
    height, width = picture.shape[1:3]
    sizes = zip(_KONTEXT, reversed(_KONTEXT), strict=True)
    _, wide, high = min((abs(width / height - w / h), w, h) for w, h in sizes)
    return scaled(picture, wide, high, "lanczos", "center")


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
    return scaled(picture, wide, high, "bilinear", "center")


def at_most(edge: int, method: str) -> Scale:
    """Scales a picture down so that its longer edge has at most so many pixels."""

    def scale(picture: Picture) -> Picture:
        height, width = picture.shape[1:3]
        if max(width, height) <= edge:
            return picture
        by = edge / max(width, height)
        return scaled(picture, max(1, round(width * by)), max(1, round(height * by)), method)

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


_TO_MEGAPIXEL, _TO_SEEN = area(MEGAPIXEL), area(_SEEN * _SEEN)


@dataclass(frozen=True)
class Edit:
    """What becomes of the control images of a model that takes reference latents."""

    reference: Scale | None = _TO_MEGAPIXEL
    """What the VAE encodes; None: the picture at the target's size."""
    ask: Ask | None = None
    """How a prompt about pictures is encoded; None: the text encoder sees none."""
    seen: Scale = _TO_SEEN
    """What the text encoder looks at."""
    most: int = MOST_REFERENCES
    options: Options = field(default_factory=dict)
    """What else belongs into the conditioning."""


EDITS = {
    "Flux": Edit(kontext),
    "Flux2": Edit(area(MEGAPIXEL, method="lanczos")),
    "LongCatImage": Edit(ask=plain, seen=_TO_MEGAPIXEL, most=1, options={"reference_latents_method": "index"}),
    "QwenImage": Edit(area(MEGAPIXEL, 8), numbered),
    "Krea2": Edit(area(MEGAPIXEL, 8), numbered, options={"reference_latents_method": "index_timestep_zero"}),
    "Boogu": Edit(area(MEGAPIXEL, 16), blind_if_blank),
    "MageFlow": Edit(None, never_empty, at_most(_SEEN, "bicubic")),
    "JoyImage": Edit(joy, plain, joy),
    "ZImage": Edit(area(MEGAPIXEL, 16), around_latents),  # the node's multiples of 8 fail where they are odd ones
    "Omnigen2": Edit(),
}
"""By the class in `comfy.supported_models`; `Edit()` is what the node ReferenceLatent and 1 megapixel do for others.

Nodes: FluxKontextImageScale; TextEncodeQwenImageEdit for LongCat; TextEncodeQwenImageEditPlus for Qwen and Krea 2;
TextEncodeBooguEdit; TextEncodeMageFlowEdit; TextEncodeJoyImageEdit; TextEncodeZImageOmni without an image encoder.
Qwen-Image-Edit of August 2025 cannot be told from its successors by its weights, and is asked as they are.
"""
