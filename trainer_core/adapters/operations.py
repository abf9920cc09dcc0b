"""What adapters ask of a layer, whatever its class: the operation that it is, its sizes, and its weight if need be.

Layers of ComfyUI, bitsandbytes, torchao, quanto, or written by hand, need not be nn.Linear or nn.Conv2d. Their weight
may be packed, so that its shape tells nothing, or not be readable at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AdapterError

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Operation:
    """A linear map, or a convolution over one to three dimensions, without its weight and bias."""

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()
    """Empty in a linear map."""
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in), or (out, in, *kernel)"""
        return (self.outputs, self.inputs, *self.kernel)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """The output for an input x with a weight (rows, in, *kernel): (…, rows), or (N, rows, …)."""
        if not self.kernel:
            return F.linear(x, weight)
        return _CONVOLUTIONS[len(self.kernel)](x, weight, None, self.stride, self.padding, self.dilation)

    def low_rank(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """The output with up @ down as weight: `down` (rank, in, *kernel), then `up` (rows, rank) at each point."""
        inner = self(x, down)
        if not self.kernel:
            return F.linear(inner, up)
        return _CONVOLUTIONS[len(self.kernel)](inner, up.reshape(*up.shape, *(1 for _ in self.kernel)))


def operation_of(module: nn.Module) -> Operation | None:
    """What a layer computes, by the attributes that nn.Linear and nn.Conv2d have; None for what no adapter fits.

    A layer is called, holds tensors of its own, and has `in_features` and `out_features`, or `in_channels`,
    `out_channels` and `kernel_size`. Convolutions that are transposed, grouped or padded with anything but zeros do not
    fit.
    """
    if type(module).forward is nn.Module.forward or next(_tensors(module), None) is None:
        return None

    def given(**usual: Any) -> dict[str, Any]:
        return {name: getattr(module, name, value) for name, value in usual.items()}

    usual = {"transposed": False, "groups": 1, "padding_mode": "zeros"}
    match given(out_features=None, in_features=None, out_channels=None, in_channels=None, kernel_size=None):
        case {"out_features": int(out), "in_features": int(into)}:
            return Operation(out, into)
        case {"out_channels": int(out), "in_channels": int(into), "kernel_size": tuple(kernel)} if (
            len(kernel) in _CONVOLUTIONS and given(**usual) == usual
        ):
            return Operation(out, into, kernel, **given(stride=1, padding=0, dilation=1))
    return None


def layers_of(model: nn.Module) -> dict[str, tuple[nn.Module, Operation]]:
    """All layers that adapters fit, by path; an adapted one is the frozen layer, at the path that it had."""
    modules = {path.removesuffix(".base_layer"): module for path, module in model.named_modules()}
    return {path: (module, found) for path, module in modules.items() if (found := operation_of(module))}


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name of a tensor → its shape, as if no layer were packed or adapted."""
    shapes = {name.replace(".base_layer.", "."): tuple(value.shape) for name, value in model.state_dict().items()}
    return shapes | {f"{path}.weight": operation.weight_shape for path, (_, operation) in layers_of(model).items()}


def device_of(module: nn.Module) -> torch.device:
    """Where a layer's tensors are."""
    return next(_tensors(module)).device


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Those that a module itself holds, its weight first."""
    weight = getattr(module, "weight", None)
    own = [weight] if isinstance(weight, Tensor) else []
    return chain(own, module.parameters(recurse=False), module.buffers(recurse=False))


def dense_weight(module: nn.Module) -> Tensor:
    """A layer's weight (out, in, *kernel), in any floating-point precision; it may be the layer's own tensor.

    It is what `dequantize()` of the weight gives, else that of the module, else the weight itself.

    Raises:
        AdapterError: if none of them is such a tensor, with the reason.
    """
    weight: Any = getattr(module, "weight", None)
    operation = operation_of(module)
    with torch.no_grad():
        if isinstance(weight, Tensor) and type(weight).dequantize is not Tensor.dequantize:
            weight = weight.dequantize()
        elif callable(dequantize := getattr(module, "dequantize", None)):
            weight = dequantize()
        elif type(weight).__module__.startswith("bitsandbytes."):
            from peft.utils.integrations import dequantize_bnb_weight

            if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # undoes how inference on some CPUs packs it
            weight = dequantize_bnb_weight(weight, getattr(module, "state", None))
    own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    if not isinstance(weight, Tensor):
        reason = "it has none"
    elif operation is None or weight.shape != operation.weight_shape or not weight.is_floating_point():
        reason = f"it is packed as {tuple(weight.shape)}, {weight.dtype}, and no dequantize() unpacks it"
    elif weight.itemsize == 1 and any("scale" in name for name, _ in own):
        reason = f"it is {weight.dtype} with scales beside it, and no dequantize() applies them"
    else:
        return weight
    raise AdapterError(f"the weight of this {type(module).__name__} cannot be read: {reason}")


def with_gradient(module: nn.Module, operation: Operation, x: Tensor, y: Tensor) -> Tensor:
    """A layer's output y for an input x, with a gradient to x even if the layer computes without autograd.

    It then comes from the dense weight; the backward pass raises AdapterError if that cannot be read.
    """
    if y.requires_grad or not torch.is_grad_enabled():
        return y
    if not torch.compiler.is_compiling() and y.is_inference():
        y = y.clone()  # autograd keeps no inference tensors
    return _InputGradient.apply(x, y, module, operation) if x.requires_grad else y


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, module: nn.Module, operation: Operation) -> Tensor:
        ctx.module, ctx.operation, ctx.shape = module, operation, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with torch.enable_grad():
            x = gradient.new_zeros(ctx.shape).requires_grad_()
            y = ctx.operation(x, dense_weight(ctx.module).to(gradient))
        return *torch.autograd.grad(y, x, gradient), None, None, None
