"""The UNet of SD 1.5 and SDXL in its original names (CompVis, Stability) or in diffusers'.

The original numbers its blocks through: `input_blocks.0` is the first convolution, then come each level's residual
blocks (with attention, where there is any) and its downsampler; `output_blocks` go the way back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..names import Naming, Place, Shapes

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_REST = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


@dataclass(frozen=True)
class _Level:
    """One resolution on the way down or up: channels, and the transformer depth after each residual block."""

    channels: int
    depths: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """All that the shapes tell of a UNet's build."""

    down: tuple[_Level, ...]
    up: tuple[_Level, ...]
    mid_resnets: int
    mid_depth: int


def original_unet(shapes: Shapes) -> _Plan | None:
    """The build of a UNet in original names; None if these are none."""
    if "input_blocks.0.0.weight" not in shapes or "out.2.weight" not in shapes:
        return None
    down: list[_Level] = []
    level: list[int] = []
    channels, n = 0, 1
    while f"input_blocks.{n}.0.in_layers.0.weight" in shapes or f"input_blocks.{n}.0.op.weight" in shapes:
        if f"input_blocks.{n}.0.op.weight" in shapes:
            down.append(_Level(channels, tuple(level)))
            level = []
        else:
            channels = shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0]
            level.append(_depth(shapes, f"input_blocks.{n}.1"))
        n += 1
    down.append(_Level(channels, tuple(level)))
    up: list[_Level] = []
    level, n = [], 0
    while (conv := f"output_blocks.{n}.0.out_layers.3.weight") in shapes:
        level.append(_depth(shapes, f"output_blocks.{n}.1"))
        if any(f"output_blocks.{n}.{k}.conv.weight" in shapes for k in (1, 2)):
            up.append(_Level(shapes[conv][0], tuple(level)))
            level = []
        n += 1
    up.append(_Level(shapes[f"output_blocks.{n - 1}.0.out_layers.3.weight"][0] if n else 0, tuple(level)))
    mid = sum(f"middle_block.{k}.in_layers.0.weight" in shapes for k in range(3))
    return _Plan(tuple(down), tuple(up), mid, _depth(shapes, "middle_block.1"))


def diffusers_unet(shapes: Shapes) -> _Plan | None:
    """The build of a UNet in diffusers' names; None if these are none."""
    if "conv_in.weight" not in shapes or "time_embedding.linear_1.weight" not in shapes:
        return None

    def levels(side: str) -> tuple[_Level, ...]:
        found: list[_Level] = []
        while f"{side}.{len(found)}.resnets.0.conv2.weight" in shapes:
            block = f"{side}.{len(found)}"
            depths: list[int] = []
            while f"{block}.resnets.{len(depths)}.conv2.weight" in shapes:
                depths.append(_depth(shapes, f"{block}.attentions.{len(depths)}"))
            found.append(_Level(shapes[f"{block}.resnets.0.conv2.weight"][0], tuple(depths)))
        return tuple(found)

    mid = sum(f"mid_block.resnets.{k}.conv2.weight" in shapes for k in range(3))
    return _Plan(levels("down_blocks"), levels("up_blocks"), mid, _depth(shapes, "mid_block.attentions.0"))


def _depth(shapes: Shapes, transformer: str) -> int:
    depth = 0
    while f"{transformer}.transformer_blocks.{depth}.attn1.to_q.weight" in shapes:
        depth += 1
    return depth


def describe_unet(config: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Any], Naming] | None:
    """Configuration and naming of a UNet from its shapes; None if these are none.

    Args:
        config: the family's own; of it stay the things that shapes do not tell. `attention_head_dim` is the number of
            heads (diffusers' name is a mistake that it keeps): one number for all levels, or 64 channels for each head.
        shapes: of the part, in original or diffusers' names.
    """
    original, named = original_unet(shapes), diffusers_unet(shapes)
    plan = original or named
    if plan is None or not plan.down[0].depths or len(plan.up) != len(plan.down):
        return None
    made = _configured(config, plan)
    first = shapes["input_blocks.0.0.weight" if original else "conv_in.weight"]
    made["in_channels"] = first[1]
    made["out_channels"] = shapes["out.2.weight" if original else "conv_out.weight"][0]
    context = next((shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")), None)
    made["cross_attention_dim"] = context or config["cross_attention_dim"]
    into = next((shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")), None)
    if into is not None:
        made["use_linear_projection"] = len(into) == 2
    added = shapes.get("label_emb.0.0.weight" if original else "add_embedding.linear_1.weight")
    if not _is_family(config, made, added):
        return None
    if added is not None:
        made["projection_class_embeddings_input_dim"] = added[1]
    return made, original_names(plan) if original else Place


def _is_family(config: dict[str, Any], made: dict[str, Any], added: tuple[int, ...] | None) -> bool:
    """Whether a UNet is one of the family of `config`: with size conditioning (SDXL) or without (SD 1.5).

    SD 2.x differs from SD 1.5 in its linear projections, the refiner from SDXL in its 384 channels.
    """
    if (added is not None) != ("projection_class_embeddings_input_dim" in config):
        return False
    if made["use_linear_projection"] and not config["use_linear_projection"]:
        return False
    return made["block_out_channels"][0] != 384


def _configured(config: dict[str, Any], plan: _Plan) -> dict[str, Any]:
    """The part of the configuration that says how the blocks are built."""
    channels = [level.channels for level in plan.down]
    made = {
        **config,
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if any(one.depths) else "DownBlock2D" for one in plan.down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(one.depths) else "UpBlock2D" for one in plan.up],
        "layers_per_block": _one_or_all([len(one.depths) for one in plan.down]),
        "mid_block_type": _mid_block(plan),
    }
    if isinstance(config["attention_head_dim"], list):
        made["attention_head_dim"] = [max(1, one // 64) for one in channels]
    down: list[Any] = [_depth_of_level(one) for one in plan.down]
    up: list[Any] = [_depth_of_level(one) for one in plan.up]
    if not any(plan.down[-1].depths) and plan.mid_depth:
        down[-1] = plan.mid_depth  # diffusers gives the middle block the last level's depth
    made["transformer_layers_per_block"] = _one_or_all(down)
    if any(any(one.depths) for one in plan.up) and up != down[::-1]:
        made["reverse_transformer_layers_per_block"] = up
    return made


def _mid_block(plan: _Plan) -> str | None:
    if plan.mid_depth:
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if plan.mid_resnets else None


def _depth_of_level(level: _Level) -> int | list[int]:
    """One number for the level, or one for each of its transformers (SSD-1B)."""
    return _one_or_all(list(level.depths)) if any(level.depths) else 1


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values


def original_names(plan: _Plan) -> Naming:
    """diffusers' name of a weight → the original one."""
    down_starts = [1 + sum(len(level.depths) + 1 for level in plan.down[:k]) for k in range(len(plan.down))]
    up_starts = [sum(len(level.depths) for level in plan.up[:k]) for k in range(len(plan.up))]

    def block(side: str, level: int, member: str, k: int) -> str:
        if side == "mid":
            return f"middle_block.{1 if member == 'attentions' else 2 * k}"
        if side == "down":
            if member == "downsamplers":
                return f"input_blocks.{down_starts[level] + len(plan.down[level].depths)}.0"
            return f"input_blocks.{down_starts[level] + k}.{int(member == 'attentions')}"
        depths = plan.up[level].depths
        if member == "upsamplers":
            return f"output_blocks.{up_starts[level] + len(depths) - 1}.{2 if depths[-1] else 1}"
        return f"output_blocks.{up_starts[level] + k}.{int(member == 'attentions')}"

    def naming(name: str) -> Place:
        module, _, leaf = name.rpartition(".")
        if module in _REST:
            return Place(f"{_REST[module]}.{leaf}")
        match = _BLOCK.fullmatch(name)
        if match is None:
            return Place(name)
        side, level, member, rest = match[1] or match[3], int(match[2] or 0), match[4], match[6]
        if member == "resnets":
            inner, _, leaf = rest.rpartition(".")
            rest = f"{_RESNET.get(inner, inner)}.{leaf}"
        if member == "downsamplers":
            rest = rest.replace("conv.", "op.", 1)
        return Place(f"{block(side, level, member, int(match[5]))}.{rest}")

    return naming


def original_modules(shapes: Shapes) -> dict[str, str]:
    """diffusers' path of each module of a UNet → its path in the original, by which some tools name LoRA layers.

    Args:
        shapes: of the UNet's state dict, in diffusers' names.
    """
    plan = diffusers_unet(shapes)
    if plan is None:
        return {}
    naming = original_names(plan)
    paths = {name.removesuffix(".weight") for name in shapes if name.endswith(".weight")}
    return {path: naming(f"{path}.weight").name.removesuffix(".weight") for path in sorted(paths)}
