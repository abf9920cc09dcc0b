"""Which layers of a model are adapted by default, by its structure: ComfyUI's architectures have no names in common."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from ...trainer_core.adapters.operations import layers_of
from ...trainer_core.memory.blocks import ATTENTION, MODULATION, attends, members
from ...trainer_core.units import part_of

EXCEPTIONS = {
    r"(.+\.)?distilled_guidance_layer\..+": "Chroma: it makes the modulation of all blocks at once",
    r".+\.ff_i\.(experts\..+|gate)": "HiDream: each expert sees few tokens, and which one it is should stay as it was",
    r"(\w+_)?refiner\..+": "Z-Image, Lumina2, OmniGen2, Boogu: each prepares one input; others leave them out",
    r"text_transformer_blocks\..+": "Kandinsky 5: they see the text alone, as a text encoder does",
    r"music_encoder\..+": "WanDancer: an encoder of sound",
    r"vace_blocks\..+": "Wan VACE: the branch that reads controls; a LoRA of Wan has `blocks`",
    r"visual\..+": "HiDream O1: its encoder of pictures",
    r"blocks\.\d+\.adaln_proj\..+": "MiniMax H3: AI Toolkit leaves them out",
}
"""Layers of blocks that are not adapted, as regular expressions over whole paths, and why."""


def targets(diffusion_model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The layers that each value of `adapter.targets` adapts, as regular expressions for one path each.

    They are all linear layers of the repeated blocks, but for EXCEPTIONS and encoders within the model. In an SD U-Net
    the 1x1 convolutions around transformer blocks count as linear.
    """
    linear = {path: inside for path, inside, is_linear in _layers(diffusion_model) if is_linear}
    modulation = {path for path, inside in linear.items() if MODULATION.fullmatch(inside)}
    attention = {path for path, inside in linear.items() if ATTENTION.fullmatch(inside)} - modulation
    return {
        "attention": _patterns(path for path in linear if path in attention),
        "attention_mlp": _patterns(path for path in linear if path not in modulation),
        "all": _patterns(linear),
    }


def conv_targets(diffusion_model: nn.Module) -> tuple[str, ...]:
    """The convolutions that `adapter.conv_rank` adapts, in the same form: those of a U-Net's stages."""
    return _patterns(path for path, _, is_linear in _layers(diffusion_model) if not is_linear)


def described(diffusion_model: nn.Module, patterns: Sequence[str]) -> str:
    """How much of a model some targets are, such as "148 layers (10.3 of 11.9 billion weights)"."""
    chosen = re.compile("|".join(patterns) or r"(?!)")
    sizes = {path: math.prod(operation.weight_shape) for path, (_, operation) in layers_of(diffusion_model).items()}
    layers = [size for path, size in sizes.items() if chosen.fullmatch(path)]
    return f"{len(layers)} layers ({part_of(sum(layers), sum(sizes.values()))}weights)"


def _layers(model: nn.Module) -> Iterator[tuple[str, str, bool]]:
    """The layers of repeated blocks and of what is beside them: path, path within the block, whether it is linear."""
    excepted = re.compile("|".join(EXCEPTIONS))
    for path, member in (members(model) or members(model, deep=True)).items():
        layers = layers_of(member)
        attention = attends(layers)
        for inside, (_, operation) in layers.items():
            if not excepted.fullmatch(f"{path}.{inside}"):
                yield f"{path}.{inside}", inside, not operation.kernel or (attention and {*operation.kernel} == {1})


def _patterns(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(re.escape, paths))
