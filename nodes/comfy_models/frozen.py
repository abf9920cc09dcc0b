"""Frozen layers whose weight is cast, unpacked or brought to the device when they compute, without keeping it.

Autograd would keep for each of them what the weight became: a model in fp8 that computes in bf16 would be on the device
a second time at twice its size, and a layer that was brought there in a buffer would read what the next one wrote into
it.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from comfy.ops import CastBiasWeightContext, CastWeightBiasOp
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...trainer_core.adapters.operations import Operation, operation_of


def keep_no_weights(model: nn.Module) -> None:
    """Gives the linear layers and convolutions of a model a backward pass that makes the weight anew.

    The gradient to their input is that of the weight that they compute with. Formats for which autograd has none
    (W4A4, W4A8) get one by it.
    """
    for module in model.modules():
        operation = operation_of(module) if isinstance(module, CastWeightBiasOp) else None
        if operation is not None and "forward" not in vars(module):
            own, place = vars(module), weakref.ref(module)  # a cycle would keep the model until it is collected
            own["forward"] = functools.partial(_forward, place, operation)
            if not operation.kernel:
                own["input_gradient"] = functools.partial(_input_gradient, place, operation)


def _forward(place: Any, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    module = place()
    if torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad and _changes(module, x):
        return _Frozen.apply(x, module, operation, args, kwargs)
    return type(module).forward(module, x, *args, **kwargs)


def _changes(module: Any, x: Tensor) -> bool:
    """Whether a layer computes with something else than the weight that it holds."""
    weight = module.weight
    changed = isinstance(weight, QuantizedTensor) or weight.dtype != x.dtype or weight.device != x.device
    return bool(changed or module.weight_function)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any, operation: Operation, args: Any, kwargs: Any) -> Tensor:
        ctx.module, ctx.operation, ctx.shape = module, operation, x.shape
        result: Tensor = type(module).forward(module, x, *args, **kwargs)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _input_gradient(lambda: ctx.module, ctx.operation, gradient, ctx.shape), None, None, None, None


def _input_gradient(place: Any, operation: Operation, gradient: Tensor, shape: torch.Size | None = None) -> Tensor:
    """The gradient to the input, of shape `shape` (which only convolutions must be told), in the gradient's dtype."""
    module = place()
    with torch.no_grad(), CastBiasWeightContext(module, gradient, offloadable=True) as (weight, _):
        if isinstance(weight, QuantizedTensor):
            weight = weight.dequantize().to(gradient.dtype)
        if not operation.kernel:
            found = gradient @ weight
        else:
            assert shape is not None
            with torch.enable_grad():
                x = gradient.new_zeros(shape).requires_grad_()
                (found,) = torch.autograd.grad(operation(x, weight), x, gradient)
    smoothing = getattr(module, "pre_quant_scale", None)
    return found if smoothing is None else found * smoothing.to(found)
