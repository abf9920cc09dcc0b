"""A frozen linear layer whose weight is packed, and unpacked whenever it is used: in the forward and backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import products
from .formats import Packed, encode

_PART = "weight_"
"""What the names of a packed weight's buffers begin with."""


class PackedLinear(nn.Module):
    """y = x Wᵀ + bias, for a frozen W in one of the formats.

    All its tensors are buffers. Casting the layer (`.to(torch.bfloat16)`) casts the bias and what `dequantize` gives;
    the packed weight stays as it is. It computes in its input's precision, or in autocast's.
    """

    bias: Tensor | None
    low_rank_down: Tensor | None
    """(rank, in): a frozen branch beside the weight, y += (x downᵀ) upᵀ; None for none."""
    low_rank_up: Tensor | None
    """(out, rank)"""

    def __init__(self, packed: Packed, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        """`dtype`: the precision that the weight is said to have, the bias's or the default one if None."""
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.format = packed.name
        self._parts = tuple(packed.parts)
        for name, part in packed.parts.items():
            self.register_buffer(_PART + name, part)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_buffer("low_rank_down", None)
        self.register_buffer("low_rank_up", None)
        self.dtype = dtype or (torch.get_default_dtype() if bias is None else bias.dtype)
        self.in_8_bits = False
        """Whether its products are computed on units for 8-bit numbers, where they fit; see `products`."""

    @classmethod
    def from_linear(cls, linear: nn.Linear, name: str) -> PackedLinear:
        """A layer as it is, with its weight in the format of that name; see `formats.encode` for errors."""
        return cls(encode(linear.weight, name), linear.bias, linear.weight.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weight is, also while it is no buffer (`memory.streaming`)."""
        part: Tensor = getattr(self, _PART + self._parts[0])
        return part.device

    @property
    def packed(self) -> Packed:
        """The weight as the formats know it; the low-rank branch is not in it."""
        parts = {name: getattr(self, _PART + name) for name in self._parts}
        return Packed(self.format, (self.out_features, self.in_features), parts)

    @property
    def weight(self) -> Tensor:
        """What other code that asks for the weight is given: it is unpacked when something is computed with it."""
        return _Unpacked(self)

    @torch.no_grad()
    def dequantize(self) -> Tensor:
        """The weight (out, in) that the layer stands for, its low-rank branch included."""
        weight = self.packed.decode(self.dtype)
        if self.low_rank_down is not None and self.low_rank_up is not None:
            weight = weight.addmm_(self.low_rank_up.to(weight), self.low_rank_down.to(weight))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        return _Product.apply(x, self)

    @torch.no_grad()
    def product(self, x: Tensor) -> Tensor:
        """The output for an input (…, in), without a graph."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        packed, rows = self.packed, x.numel() // self.in_features
        if self.in_8_bits and products.fits(packed, rows):
            y = products.product(packed, x.reshape(rows, -1)).view(*x.shape[:-1], -1)
            y = y if bias is None else y.add_(bias)
        else:
            y = products.unpacked_product(packed, x, bias)
        return _with_branch(y, x, self.low_rank_down, self.low_rank_up)

    @torch.no_grad()
    def input_gradient(self, gradient: Tensor) -> Tensor:
        """gradient W, in its precision, for a gradient (…, out) of the output."""
        packed, rows = self.packed, gradient.numel() // self.out_features
        if self.in_8_bits and products.fits(packed, rows):
            found = products.input_gradient(packed, gradient.reshape(rows, -1)).view(*gradient.shape[:-1], -1)
        else:
            found = products.unpacked_input_gradient(packed, gradient)
        up, down = self.low_rank_up, self.low_rank_down
        return _with_branch(found, gradient, None if up is None else up.T, None if down is None else down.T)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, format={self.format}"

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:  # noqa: ARG002
        """Moves its tensors, and casts those that are ordinary numbers."""
        for name, buffer in self.named_buffers(recurse=False):
            moved = fn(buffer)
            packed = name.startswith(_PART) and moved.dtype != buffer.dtype
            self.register_buffer(name, buffer.to(moved.device) if packed else moved)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


def use_products(model: nn.Module, chosen: Mapping[str, bool]) -> None:
    """Lets packed layers compute in 8 bits where `products.products_of` chose it; the others unpack their weights."""
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            key = products.key_of(layer.format, (layer.out_features, layer.in_features))
            layer.in_8_bits = chosen.get(key, False)


def _with_branch(y: Tensor, x: Tensor, down: Tensor | None, up: Tensor | None) -> Tensor:
    """y + (x downᵀ) upᵀ, in place."""
    if down is None or up is None:
        return y
    inner = x.flatten(0, -2) @ down.to(x.dtype).T
    y.view(-1, y.shape[-1]).addmm_(inner, up.to(x.dtype).T)
    return y


class _Product(torch.autograd.Function):
    """Keeps the layer and no tensor: its weight is read again in the backward pass, wherever it is by then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.layer.input_gradient(gradient), None


class _Unpacked(Tensor):
    """Shape, precision and device of a packed weight, which is unpacked when something is computed with it."""

    layer: PackedLinear

    @staticmethod
    def __new__(cls, layer: PackedLinear) -> _Unpacked:
        shape, device = (layer.out_features, layer.in_features), layer.device
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=layer.dtype, device=device)  # noqa: SLF001
        made.layer = layer
        return made

    def dequantize(self) -> Tensor:
        return self.layer.dequantize()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        from torch.utils._pytree import tree_map

        args, kwargs = tree_map(lambda one: one.dequantize() if isinstance(one, cls) else one, (args, kwargs or {}))
        return func(*args, **kwargs)
