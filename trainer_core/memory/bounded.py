"""Blocks whose gradients are summed up as if they were computed again, bit for bit: either may follow the other.

A recomputed block gives one gradient to each input; in an ordinary graph the parts of a sum come from wherever the
input is read, inside and outside of the block, in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .saved import version


def bounded(run: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward with a graph that its inputs enter by one node.

    These are tensors in its arguments and in tuples of them; others are given as they are.
    """

    @functools.wraps(run)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        inputs: dict[int, Tensor] = {}
        _mapped((args, *kwargs.values()), lambda one: inputs.setdefault(id(one), one))
        reached = [one for one in inputs.values() if one.requires_grad]
        inside = {number: one.detach() for number, one in inputs.items()}
        if reached:
            inside |= zip(map(id, reached), _Enter.apply(*reached), strict=True)
        versions = [*map(version, inside.values())]
        args, values = _mapped((args, tuple(kwargs.values())), lambda one: inside[id(one)])
        given = run(*args, **dict(zip(kwargs, values, strict=True)))
        for one, entered, before in zip(inputs.values(), inside.values(), versions, strict=True):
            if version(entered) != before:
                one.copy_(entered)  # its values are the same, and now it has its graph
        known = {id(entered): inputs[number] for number, entered in inside.items()}
        return _mapped(given, lambda one: known.get(id(one), one))

    return forward


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(one.detach() for one in tensors)

    @staticmethod
    def backward(_: Any, *gradients: Tensor | None) -> Any:
        return gradients


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    return tuple(_mapped(one, function) for one in value) if type(value) is tuple else value
