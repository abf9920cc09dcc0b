"""Weight deltas: what an adapter does to one layer, as a few tensors (LoRA and DoRA, LoKr, LoHa).

Trained adapters and files that were read are the same thing here: y = W x + strength · added(x). A whole ΔW is built
only for LoHa.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..errors import AdapterError
from .operations import Operation

_Delta = TypeVar("_Delta", bound="LowRank | Kronecker | Hadamard")


@dataclass(frozen=True)
class LowRank:
    """LoRA (Hu et al. 2021): ΔW = scale · up @ down. With `dora_scale` a DoRA (Liu et al. 2024).

    A DoRA's weight is W' = (W + ΔW) · dora_scale / ‖W‖, row by row. That is ComfyUI's reading of the file's
    `dora_scale`; of the paper's magnitude m it is m · ‖W‖ / ‖W + ΔW‖. At another strength than 1 it is, there as here,
    W + strength · (W' - W): a straight line between both, on which the length of the rows is not kept.
    """

    down: Tensor
    """(rank, in), or (rank, in, height, width) in a convolution"""
    up: Tensor
    """(out, rank)"""
    scale: float
    dora_scale: Tensor | None = None
    """(out,)"""
    norms: Tensor | None = None
    """(out,): ‖W‖ of each row; there if `dora_scale` is."""
    magnitude: Tensor | None = None
    """(out,): the paper's m, in files of PEFT; `for_modules` makes `dora_scale` of it"""

    @property
    def kind(self) -> str:
        return "LoRA" if self.dora_scale is None else "DoRA"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of ΔW, a convolution's kernel flattened."""
        return self.up.shape[0], self.down[0].numel()

    @property
    def up_weight(self) -> Tensor:
        """`up` as the weight of the layer that it is in files: in a convolution (out, rank, 1, 1)."""
        return self.up.reshape(*self.up.shape, *(1 for _ in self.down.shape[2:]))

    def added(self, layer: Operation, x: Tensor, y: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        """What is added to a layer's output.

        Args:
            layer: what the layer computes.
            x: its input, in the precision of the delta's tensors, with dropout applied.
            y: its output, with its bias.
        """
        delta = layer.low_rank(x, self.down, self.up)
        if self.dora_scale is None or self.norms is None:
            return delta * (self.scale * strength)
        rows = (-1, *(1 for _ in layer.kernel))  # a convolution's channels come before its places
        factor = (self.dora_scale / self.norms).view(rows)
        plain = y.to(x.dtype) if bias is None else y.to(x.dtype) - bias.to(x).view(rows)
        return ((factor - 1).to(x.dtype) * plain + factor.to(x.dtype) * (self.scale * delta)) * strength


@dataclass(frozen=True)
class Kronecker:
    """LoKr (Yeh et al. 2024, LyCORIS): ΔW = scale · w1 ⊗ w2, where w2 may be w2_a @ w2_b.

    With w1 (a, c) and w2 (b, d), out = a · b and in = c · d.
    """

    w1: Tensor
    """(a, c)"""
    w2: Tensor | None
    """(b, d), or (b, d, height, width) in a convolution; None if it is given by its factors"""
    w2_a: Tensor | None
    """(b, rank)"""
    w2_b: Tensor | None
    """(rank, d), or (rank, d, height, width)"""
    scale: float
    kind: ClassVar[str] = "LoKr"

    def added(self, layer: Operation, x: Tensor, y: Tensor, bias: Tensor | None, strength: float) -> Tensor:  # noqa: ARG002
        """As `LowRank.added`. (w1 ⊗ w2) x is w1 X w2ᵀ, X being x as a (c, d) matrix."""
        groups = self.w1.shape[1]
        if layer.kernel:
            inner = self._w2(layer, x.reshape(x.shape[0] * groups, -1, *x.shape[2:]))
            mixed = self.w1 @ inner.reshape(x.shape[0], groups, -1)
            return mixed.reshape(y.shape) * (self.scale * strength)
        inner = self._w2(layer, x.reshape(*x.shape[:-1], groups, -1))
        return (self.w1 @ inner).flatten(-2) * (self.scale * strength)

    def _w2(self, layer: Operation, x: Tensor) -> Tensor:
        if self.w2 is not None:
            return layer(x, self.w2)
        w2_a, w2_b = self.factors
        return layer.low_rank(x, w2_b, w2_a)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """w2_a and w2_b, where w2 is not whole."""
        assert self.w2_a is not None
        assert self.w2_b is not None
        return self.w2_a, self.w2_b

    @property
    def whole_w2(self) -> Tensor:
        """w2, of its factors if need be."""
        return torch.tensordot(*self.factors, dims=1) if self.w2 is None else self.w2

    @property
    def w2_shape(self) -> tuple[int, ...]:
        """(b, d), or (b, d, height, width)"""
        left, right = self.factors if self.w2 is None else (self.w2, self.w2)
        return (left.shape[0], *right.shape[1:])

    @property
    def size(self) -> tuple[int, int]:
        """As `LowRank.size`."""
        (a, c), (b, *row) = self.w1.shape, self.w2_shape
        return a * b, c * math.prod(row)

    def named(self) -> dict[str, Tensor]:
        """The tensors in LyCORIS' names, in which w2_b has no kernel."""
        if self.w2 is not None:
            return {"lokr_w1": self.w1, "lokr_w2": self.w2}
        w2_a, w2_b = self.factors
        return {"lokr_w1": self.w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b.flatten(1)}


@dataclass(frozen=True)
class Hadamard:
    """LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS): ΔW = scale · (w1_a @ w1_b) ∘ (w2_a @ w2_b)."""

    w1_a: Tensor
    """(out, rank)"""
    w1_b: Tensor
    """(rank, in), in a convolution (rank, in · height · width)"""
    w2_a: Tensor
    w2_b: Tensor
    scale: float
    kind: ClassVar[str] = "LoHa"

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """As `LowRank.size`."""
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def named(self) -> dict[str, Tensor]:
        """The tensors in LyCORIS' names."""
        return {f"hada_{part}": getattr(self, part) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}

    def added(self, layer: Operation, x: Tensor, y: Tensor, bias: Tensor | None, strength: float) -> Tensor:  # noqa: ARG002
        """As `LowRank.added`; here the whole ΔW has to be built."""
        delta = ((self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)).view(layer.weight_shape)
        return layer(x, delta) * (self.scale * strength)


Delta = LowRank | Kronecker | Hadamard
Deltas = dict[str, Delta]
"""By a layer's name: our module path, or its name in a file."""


def mapped(delta: _Delta, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> _Delta:
    """The same delta without graph, its tensors copied to a device or precision."""
    tensors = {part.name: getattr(delta, part.name) for part in fields(delta)}
    moved: dict[str, Any] = {
        name: value.detach().to(device or value.device, dtype or value.dtype, copy=True)
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
    return replace(delta, **moved)


def computing_in(dtype: torch.dtype, delta: _Delta) -> _Delta:
    """The same delta whose products are computed in a precision, with its graph; a DoRA's lengths stay as they are."""
    products = (part.name for part in fields(delta) if part.name not in ("dora_scale", "norms", "magnitude"))
    given = {name: getattr(delta, name) for name in products}
    cast: dict[str, Any] = {name: value.to(dtype) for name, value in given.items() if isinstance(value, Tensor)}
    return replace(delta, **cast)


def swapped(delta: Delta, name: str = "") -> Delta:
    """(shift, scale) instead of (scale, shift)."""
    return over_rows(name, delta, lambda value: torch.cat(value.chunk(2)[::-1]), 2)


def over_rows(name: str, delta: Delta, function: Callable[[Tensor], Tensor], parts: int) -> Delta:
    """A delta whose ΔW has other rows: those that a function makes of whatever runs along them."""
    if isinstance(delta, Kronecker):
        if delta.w1.shape[0] % parts:
            raise AdapterError(f"{name}: this LoKr runs across layers that are apart here; it cannot be cut")
        return replace(delta, w1=function(delta.w1))
    along = ("up", "dora_scale", "magnitude") if isinstance(delta, LowRank) else ("w1_a", "w2_a")
    given = {part: getattr(delta, part) for part in along}
    made: dict[str, Any] = {part: function(value) for part, value in given.items() if value is not None}
    return replace(delta, **made)


def row_norms(weight: Tensor) -> Tensor:
    """‖W‖ of each row (out,), fp32, never 0; a convolution's row is all that leads to one output channel."""
    return torch.linalg.vector_norm(weight.detach().float().flatten(1), dim=1).clamp_min(1e-12)


def changed_norms(weight: Tensor, norms: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """‖W + scale · up @ down‖ of each row (out,), without graph, and without building the sum.

    ‖w + s b A‖² = ‖w‖² + 2 s (w Aᵀ) · b + s² b (A Aᵀ) bᵀ, for each row w of W and b of up.
    """
    kind = weight.device.type
    full = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with torch.no_grad(), full:
        a = down.flatten(1)
        across = ((weight.to(a).flatten(1) @ a.T) * up).sum(1)
        own = ((up @ (a @ a.T)) * up).sum(1)
        # as a factor, so that no delta is exactly none
        growth = (2 * scale * across + scale**2 * own) / norms.square()
        return norms * (1 + growth).clamp_min(1e-24).sqrt()
