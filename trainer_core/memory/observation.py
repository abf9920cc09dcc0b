"""What a model and its blocks are given, and what they make of it: looked at from outside, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..families.device import autocast
from .structure import Rebuild

if TYPE_CHECKING:
    from ..families.base import Base
    from ..families.conditioning import Streams
    from .calibration import Probe

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block."""


def prediction(base: Base, denoiser: nn.Module, probe: Probe) -> Streams:
    """What a denoiser predicts, in its precision, with its graph where gradients are on."""
    with autocast(base.device, base.dtype):
        return base.predict(denoiser, probe.noisy, probe.t, probe.conditioning)


@torch.no_grad()
def predictions(base: Base, denoiser: nn.Module, probes: Sequence[Probe]) -> list[Streams]:
    """The same of several, without graph, on the CPU."""
    return [{name: one.cpu() for name, one in prediction(base, denoiser, probe).items()} for probe in probes]


def tensors_of(streams: Sequence[Streams]) -> list[Tensor]:
    """All tensors of several predictions."""
    return [one for group in streams for one in group.values()]


class _Reached(Exception):
    """The block whose inputs were asked for."""


@torch.no_grad()
def calls_of(base: Base, denoiser: nn.Module, block: nn.Module, probes: Sequence[Probe]) -> list[Call]:
    """What a block is called with, on the CPU; what comes after it is not computed."""
    calls: list[Call] = []

    def seen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_moved((args, kwargs), torch.device("cpu")))
        raise _Reached

    hook = block.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        for probe in probes:
            with suppress(_Reached):
                prediction(base, denoiser, probe)
    finally:
        hook.remove()
    return calls


def observed(
    base: Base, original: nn.Module, layers: Iterable[str], calls: Sequence[Call]
) -> tuple[list[list[Tensor]], dict[str, Tensor]]:
    """A full block's outputs, on the CPU, and Σ x xᵀ of the inputs of its layers."""
    covariances: dict[str, Tensor] = {}

    def seen(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2).float()
        covariances[name] = covariances.get(name, 0) + rows.T @ rows

    hooks = [original.get_submodule(name).register_forward_pre_hook(partial(seen, name)) for name in layers]
    try:
        with torch.no_grad():
            targets = [[one.cpu() for one in outputs(base, original, call)] for call in calls]
    finally:
        for hook in hooks:
            hook.remove()
    return targets, covariances


def outputs(base: Base, block: nn.Module, call: Call) -> list[Tensor]:
    """The tensors that a block gives, which may have changed those that it was given: these are copies."""
    args, kwargs = _moved(call, base.device)
    with autocast(base.device, base.dtype):
        found = block(*args, **kwargs)
    return [one for one in tree_leaves(found) if isinstance(one, Tensor) and one.is_floating_point()]


def all_outputs(base: Base, block: nn.Module, calls: Sequence[Call]) -> list[Tensor]:
    """The same of several calls, one after the other, on the CPU."""
    return [one.cpu() for call in calls for one in outputs(base, block, call)]


def _moved(call: Call, device: torch.device) -> Call:
    moved: Call = Rebuild(
        lambda value: value.detach().to(device, copy=True) if isinstance(value, Tensor) else NotImplemented, (Tensor,)
    )(call)
    return moved


@contextmanager
def visiting(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """A model on the CPU computes on a device: each block is there while it is called only, all else throughout."""
    blocks = list(blocks)
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = [module for module in model.modules() if id(module) not in inside]

    def comes(block: nn.Module, _: Any) -> None:
        block.to(device)

    def leaves(block: nn.Module, _: Any, __: Any) -> None:
        block.to("cpu")

    hooks = [block.register_forward_pre_hook(comes) for block in blocks]
    hooks += [block.register_forward_hook(leaves) for block in blocks]
    _move_own(outside, device)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _move_own(outside, torch.device("cpu"))


def _move_own(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Moves what modules hold themselves, and not what is inside them."""
    for module in modules:
        module._apply(lambda tensor: tensor.to(device), recurse=False)  # noqa: SLF001 - torch has no other way
