"""Layers with quantized weights: their gradient, and the mode that they can be moved in."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn


def add_gradients(model: nn.Module) -> None:
    """Gives the layers of a model a gradient to their input where autograd has none for the format (W4A4, W4A8).

    It is that of the dequantized weight.
    """
    for module in model.modules():
        linear = getattr(module, "_forward", None)
        if linear is not None and isinstance(getattr(module, "weight", None), QuantizedTensor):
            module._forward = functools.partial(_with_gradient, linear)  # type: ignore[assignment]  # noqa: SLF001


def _with_gradient(linear: Any, x: Any, weight: Any, bias: Any) -> Any:
    if isinstance(weight, QuantizedTensor) and not isinstance(x, QuantizedTensor) and x.requires_grad:
        return _Linear.apply(x, weight, bias, linear)
    return linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, linear: Any) -> Tensor:
        ctx.save_for_backward(weight)
        result: Tensor = linear(x, weight, bias)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return gradient @ weight.dequantize().to(gradient.dtype), None, None, None


@contextmanager
def as_loaded(model: nn.Module) -> Iterator[None]:
    """The mode in which a model was loaded: inference mode in a graph.

    ComfyUI's quantized layers that are moved in another can afterwards not be moved in the first.
    """
    weight = next(model.parameters(), None)
    with torch.inference_mode(weight is not None and weight.is_inference()), torch.no_grad():
        yield
