"""The VAE (AutoencoderKL) in its original names (CompVis) or in diffusers'."""

from __future__ import annotations

import re
from typing import Any

from ..names import Naming, Place, Shapes

_LEVEL = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""diffusers' own names before 2023, which published SD 1.5 VAEs still have."""


def describe_vae(config: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Any], Naming] | None:
    """Configuration and naming of a VAE from its shapes; None if these are none."""
    if "decoder.conv_in.weight" not in shapes or len(shapes["decoder.conv_in.weight"]) != 4:
        return None
    original = "decoder.up.0.block.0.conv1.weight" in shapes
    block = "encoder.down.{}.block.{}" if original else "encoder.down_blocks.{}.resnets.{}"
    channels: list[int] = []
    while (conv := f"{block.format(len(channels), 0)}.conv2.weight") in shapes:
        channels.append(shapes[conv][0])
    layers = 0
    while f"{block.format(0, layers)}.conv2.weight" in shapes:
        layers += 1
    if not channels or shapes["decoder.conv_in.weight"][1] != config["latent_channels"]:
        return None  # a decoder alone, or another family's VAE
    made = {
        **config,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": any(".mid.attn_1." in name or ".attentions.0." in name for name in shapes),
    }
    if original:
        return made, original_names(len(channels))
    old = any(".attentions.0.query." in name for name in shapes)
    return made, (lambda name: Place(vae_name_before_2023(name))) if old else Place


def vae_name_before_2023(name: str) -> str:
    """diffusers' name of a VAE's weight → the one that it had in the first years."""
    match = _MIDDLE.fullmatch(name)
    if match is None or match[2] != "attentions":
        return name
    inner, _, leaf = match[4].rpartition(".")
    return f"{match[1]}.mid_block.attentions.{match[3]}.{_OLD_ATTENTION.get(inner, inner)}.{leaf}"


def original_names(levels: int) -> Naming:
    """diffusers' name of a weight → the original one, which counts the decoder's levels from the largest picture."""

    def naming(name: str) -> Place:
        if match := _LEVEL.fullmatch(name):
            half, way, level, member, k, rest = match.groups()
            place = int(level) if way == "down" else levels - 1 - int(level)
            inner = f"block.{k}" if member == "resnets" else {"down": "downsample", "up": "upsample"}[way]
            return Place(f"{half}.{way}.{place}.{inner}.{rest.replace('conv_shortcut', 'nin_shortcut')}")
        if match := _MIDDLE.fullmatch(name):
            half, member, k, rest = match.groups()
            if member == "resnets":
                return Place(f"{half}.mid.block_{int(k) + 1}.{rest.replace('conv_shortcut', 'nin_shortcut')}")
            inner, _, leaf = rest.rpartition(".")
            return Place(f"{half}.mid.attn_{int(k) + 1}.{_ATTENTION.get(inner, inner)}.{leaf}")
        return Place(name.replace("conv_norm_out", "norm_out"))

    return naming
