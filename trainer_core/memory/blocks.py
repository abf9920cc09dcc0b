"""The blocks that a denoiser is made of, found by structure: architectures have no names in common."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from ..adapters.operations import layers_of

ATTENTION = re.compile(r"(?:.*\.)?(?:\w*(?:attn|attention)\w*(?:\..+)?|q|k|v|qkv|linear1)")
"""Attention, by its path in a block. `linear1` is q, k, v and the feed-forward's first layer in FLUX's single ones."""
MODULATION = re.compile(
    r"(?:.*\.)?(?:\w*ada_?ln\w*|(?:\w+_)?mod(?:ulation)?(?:_\w+)?|mod[cx]+|\w*norm\d*(?:_\w+)?|emb_layers"
    r"|mapper(?:_\w+)?|time_pos_embed|time_emb_proj)(?:\..+)?",
    re.IGNORECASE,
)
"""What scales and shifts by the time or another condition, by its path in a block."""
_LISTS = (nn.ModuleList, nn.ModuleDict)


def blocks_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The blocks that a model is made of, by path, none inside another: those to recompute, or to stream, one by one.

    They are the members of lists with attention; in a U-Net transformer blocks and residual blocks. Encoders within
    the model are among them.
    """
    found: dict[str, nn.Module] = {}
    for path, member in members(denoiser, deep=True).items():
        inner = {f"{path}.{below}": block for below, block in blocks_of(member).items()}
        if inner or any(not operation.kernel for _, operation in layers_of(member).values()):
            found |= inner or {path: member}
    return found


def members(model: nn.Module, deep: bool = False) -> dict[str, nn.Module]:
    """The members of lists that have attention, and their like in sequences; `deep`: of lists within parts, too."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if isinstance(child, _LISTS) and attends(layers_of(child)):
            found |= _flat(child, name)
        elif deep:
            found |= {f"{name}.{path}": member for path, member in members(child, deep).items()}
    kinds = {type(member) for member in found.values()}
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential):  # a U-Net's middle
            found |= {path: member for path, member in _flat(child, name).items() if type(member) in kinds}
    return found


def attends(paths: Iterable[str]) -> bool:
    """Whether one of some layers, by their paths, is attention's."""
    return any(map(ATTENTION.fullmatch, paths))


def _flat(parent: nn.Module, path: str) -> dict[str, nn.Module]:
    """What a list holds that has layers and is none, by path; the stages of a U-Net are lists themselves."""
    found: dict[str, nn.Module] = {}
    for name, child in parent.named_children():
        if isinstance(child, (*_LISTS, nn.Sequential)):
            found |= _flat(child, f"{path}.{name}")
        elif (layers := layers_of(child)) and "" not in layers:
            found[f"{path}.{name}"] = child
    return found
