"""ComfyUI's fused kernels with gradients."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

_PLAIN = {
    "rope": (
        *("apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1"),
        *("rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1"),
    ),
    "adaln": ("adaln", "rms_adaln"),
}
"""Operations of comfy_kitchen that are written in plain torch too: by module of its backend `eager`."""


@contextmanager
def differentiable() -> Iterator[None]:
    """Around training: ComfyUI leaves out kernels without a gradient, and those that some models use nevertheless
    (Cosmos-Predict2, Anima, ERNIE-Image, JoyImage) get one. The first is process-wide, so it ends with the context.
    """
    _add_gradients()
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def compilable() -> Iterator[None]:
    """Around a model's code: how much memory is free, by which its attention chooses its pieces, is a constant to
    torch.compile, which cannot ask the system."""
    before = comfy.model_management.get_free_memory
    comfy.model_management.get_free_memory = _constant(vars(before).get("asked", before))
    try:
        yield
    finally:
        comfy.model_management.get_free_memory = before


@functools.cache
def _constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """One for all times: what is compiled is compiled anew for another."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    marked: Callable[..., Any] = torch.compiler.assume_constant_result(called)
    vars(marked)["asked"] = function
    return marked


@functools.cache
def _add_gradients() -> None:
    """Once in a process. Whoever runs these kernels without gradients does not notice it."""
    for part, names in _PLAIN.items():
        try:
            plain = importlib.import_module(f"comfy_kitchen.backends.eager.{part}")
        except ImportError:  # an older ComfyUI: its models do not use them
            continue
        for name in names:
            if hasattr(plain, name) and hasattr(torch.ops.comfy_kitchen, name):
                _add_gradient(name, getattr(plain, name))


def _add_gradient(name: str, plain: Callable[..., Any]) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        ctx.save_for_backward(*(one for one in inputs if isinstance(one, Tensor)))
        ctx.others = [None if isinstance(one, Tensor) else (one,) for one in inputs]

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if other is None else other[0] for other in ctx.others]
        wanted = [number for number, need in enumerate(ctx.needs_input_grad) if need]
        for number in wanted:
            inputs[number] = inputs[number].detach().requires_grad_()
        with torch.enable_grad():
            found = plain(*inputs)
        results = found if isinstance(found, tuple) else (found,)
        pairs = [
            (one, gradient)
            for one, gradient in zip(results, gradients, strict=True)
            if gradient is not None and one.requires_grad
        ]
        sources = [inputs[number] for number in wanted]
        got = torch.autograd.grad(
            [one for one, _ in pairs], sources, [gradient for _, gradient in pairs], allow_unused=True
        )
        by_number = dict(zip(wanted, got, strict=True))
        return tuple(by_number.get(number) for number in range(len(inputs)))

    torch.library.register_autograd(f"comfy_kitchen::{name}", backward, setup_context=keep)
