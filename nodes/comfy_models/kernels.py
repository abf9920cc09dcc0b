"""Gradients for kernels of ComfyUI's that have none.

Most of its models choose other functions while `in_training` is set. Some (Cosmos-Predict2, Anima, Ernie, JoyImage …)
call `comfy_kitchen`'s fused operations all the same. Their plain versions, which the package keeps for devices without
the fused ones, are made of torch's own operations: the gradient is theirs.
"""

from __future__ import annotations

import functools
from itertools import zip_longest
from typing import Any

import comfy_kitchen.backends.eager as plain
import torch
from torch import Tensor

_OPERATIONS = (
    *("adaln", "rms_adaln"),
    *("apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1"),
    *("rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1"),
)


@functools.cache
def give_gradients() -> None:
    """Registers them; once for each process. Nothing that ran before computes otherwise."""
    for name in _OPERATIONS:
        function = getattr(plain, name, None)
        if function is not None and hasattr(torch.ops.comfy_kitchen, name):
            backward = functools.partial(_backward, function)
            torch.library.register_autograd(f"comfy_kitchen::{name}", backward, setup_context=_keep)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*(one for one in inputs if isinstance(one, Tensor)))
    ctx.others = [None if isinstance(one, Tensor) else (one,) for one in inputs]


def _backward(function: Any, ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    saved = iter(ctx.saved_tensors)
    with torch.enable_grad():
        inputs = [
            next(saved).detach().requires_grad_(need) if other is None else other[0]
            for other, need in zip_longest(ctx.others, ctx.needs_input_grad, fillvalue=False)  # none for defaults
        ]
        outputs = function(*inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        wanted = [one for one in inputs if isinstance(one, Tensor) and one.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, gradients))
    return tuple(next(found) if isinstance(one, Tensor) and one.requires_grad else None for one in inputs)
