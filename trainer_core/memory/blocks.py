"""The blocks that a denoiser is made of, found by structure: architectures have no names in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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

    They are the members of lists with attention, and in a U-Net residual blocks too. Encoders within the model are
    among them. They come in the order in which they are computed, as far as the model's structure tells it.
    """
    modules = dict(denoiser.named_modules())
    attending = _attending(denoiser)
    stages = {above for path in attending for above in _above(path) if not isinstance(modules[above], _LISTS)}
    kinds = {
        type(member)
        for stage in stages
        for name, child in modules[stage].named_children()
        if isinstance(child, nn.ModuleList)
        for path, member in _flat(child, f"{stage}.{name}").items()
        if path not in stages and path not in attending and _is_residual(member)
    }
    residual = {path for path, one in modules.items() if type(one) in kinds}
    found = (attending.keys() | residual) - {above for path in residual for above in _above(path)}
    order = sorted(modules, key=_turn) if residual else modules  # of diffusers' U-Nets
    return {path: modules[path] for path in order if path in found}


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


def _attending(model: nn.Module) -> dict[str, nn.Module]:
    """The smallest members of lists with attention."""
    found: dict[str, nn.Module] = {}
    for path, member in members(model, deep=True).items():
        inner = {f"{path}.{below}": block for below, block in _attending(member).items()}
        if inner or _is_linear(member):
            found |= inner or {path: member}
    return found


def _flat(parent: nn.Module, path: str) -> dict[str, nn.Module]:
    """What a list holds that has layers and is none, by path; the stages of a U-Net are lists themselves."""
    found: dict[str, nn.Module] = {}
    for name, child in parent.named_children():
        if isinstance(child, (*_LISTS, nn.Sequential)):
            found |= _flat(child, f"{path}.{name}")
        elif (layers := layers_of(child)) and "" not in layers:
            found[f"{path}.{name}"] = child
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether it has other layers than convolutions."""
    return any(not operation.kernel for _, operation in layers_of(module).values())


def _is_residual(module: nn.Module) -> bool:
    """Whether it has convolutions and other layers, as the residual blocks of U-Nets have."""
    return _is_linear(module) and any(operation.kernel for _, operation in layers_of(module).values())


def _above(path: str) -> Iterator[str]:
    """The paths of what a module is in, but for the model itself."""
    while path := path.rpartition(".")[0]:
        yield path


def _turn(path: str) -> list[tuple[int, bool]]:
    """When a part of a U-Net is computed: down, middle, up; in a stage its lists in turn, attention last."""
    stage, *parts = path.split(".")
    turns = [(next((k for k, name in enumerate(("down", "mid", "up")) if stage.startswith(name)), -1), False)]
    name = ""
    for part in parts:
        if part.isdecimal():
            turns.append((int(part), attends([name])))
        name = part
    return turns
