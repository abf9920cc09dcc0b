"""Models of the zoo that edit, as bases, and pictures to edit: as our data hands them on, and as ComfyUI's nodes do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..pack import module
from .zoo import MODELS

ZOO = MODELS | {"krea2_edit": replace(MODELS["krea2_edit"], latents=((1, 16, 1, 16, 16),))}
"""Krea 2's VAE is a video's, and so are its latents in a graph."""
SIGHTED = ["longcat", "qwen_edit_3", "krea2_edit", "boogu_edit", "mage_flow_edit", "joyimage_edit", "z_image_omni"]
"""Models whose text encoders are told of the pictures."""
NAMES = [
    "flux1_kontext",
    "flux2_edit",
    "omnigen2_edit",
    *SIGHTED,
    "qwen_edit_2511",
    "hidream_e1",
    "sd15_ip2p",
    "sdxl_ip2p",
    "flux1_fill",
    "sd15_inpainting",
    "sdxl_inpainting",
]
MOST = {"longcat": 1, "hidream_e1": 1, "sd15_ip2p": 1, "sdxl_ip2p": 1} | dict.fromkeys(
    ("flux1_fill", "sd15_inpainting", "sdxl_inpainting"), 2
)
SIZES = ((200, 152), (96, 160), (128, 128))
"""Width and height of three pictures."""


def bytes_of(width: int, height: int, seed: int) -> Any:
    """A smooth picture (H, W, 3), uint8: encoders and scaling see more in it than noise."""
    corners = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(corners, (height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def shown(name: str, count: int) -> list[Any]:
    """Pictures for a model: of the target's size where it needs that."""
    sizes = SIZES if base_of(name).spec.own_controls and not fills(name) else [target(name)] * 3
    if name == "z_image_omni":
        sizes = [(96, 96)] * 3  # its node fails with most sizes that are not square
    found = [bytes_of(*size, seed) for seed, size in enumerate(sizes[:count])]
    if fills(name):
        found[1] = np.where(found[1][..., :1] > 127, 255, 0).astype(np.uint8).repeat(3, 2)
    return found


def fills(name: str) -> bool:
    return "fill" in name or "inpainting" in name


def images(pictures: Sequence[Any]) -> list[Any]:
    """As LoadImage hands them over."""
    return [torch.from_numpy(one.astype(np.float32) / 255.0)[None] for one in pictures]


def pixels(pictures: Sequence[Any]) -> list[Any]:
    """As our data does."""
    return [torch.from_numpy(one).permute(2, 0, 1).float() / 127.5 - 1 for one in pictures]


def target(name: str) -> tuple[int, int]:
    """Width and height in pixels."""
    height, width = ZOO[name].latents[0][-2:]
    factor = base_of(name).spec.main.factor
    return width * factor, height * factor


BASES: dict[str, Any] = {}


def base_of(name: str) -> Any:
    """A base of a tiny model with text encoder and VAE; they are made once, and nothing changes them."""
    from .zoo import encoders

    if name not in BASES:
        model = ZOO[name]
        linked = module("nodes.comfy_models.loading").Linked((model.make(),), encoders.clip(model), encoders.vae(model))
        config = module("trainer_core.config").ModelConfig(device="cpu")
        BASES[name] = module("nodes.comfy_models.base").ComfyBase(linked, config)
    return BASES[name]


def parts_of(name: str) -> tuple[Any, Any, Any]:
    linked = base_of(name)._linked
    return linked.models[0], linked.clip, linked.vae


def made(name: str, prompt: str, pictures: Sequence[Any]) -> list[Any]:
    """Our conditioning: embedded, cached, and collated for a batch of one."""
    base, given = base_of(name), pixels(pictures)
    conditioning = module("trainer_core.families.conditioning").Conditioning
    (text,) = base.encode_prompts([prompt], [given])
    return conditioning(prompt, text, base.encode_controls(given, target(name)))


def stock(name: str, prompt: str, pictures: Sequence[Any], vae: bool = True) -> Any:
    from .stock_edit import STOCK

    _, clip, own = parts_of(name)
    return STOCK[name]()(clip, own if vae else None, prompt, images(pictures))
