"""What transformers do between their products, keeping little for the backward pass: each as one function.

They compute what the plain operations do, rounding apart. Where something is trained that they know no gradient for, or
a compiler does better, they are the plain operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...memory.again import from_now_on


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) · (1 + scale) + shift, for x (N, T, d) and scale and shift (N, 1, d)."""
    if _is_plain(scale, shift):
        return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift
    factor = 1 + scale
    return from_now_on(_Modulated.apply(x, factor, shift, eps), _Norm(eps), x, factor, shift)


def gated(residual: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """residual + gate · y, for a gate (N, 1, d). Of y nothing is kept if the gate is frozen."""
    if residual.dtype != y.dtype or gate.dtype != y.dtype:
        return residual + gate * y
    return torch.addcmul(residual, gate, y)


def gelu(u: Tensor, before: Tensor | None = None) -> Tensor:
    """GELU(u) by its tanh formula, behind `before` if that is given: (…, d) or (…, d' + d)."""
    if _is_plain():
        y = _gelu_by_exp(u)
        return y if before is None else torch.cat([before, y], -1)
    return from_now_on(_Gelu.apply(u, before), _gelu, *([u] if before is None else [u, before]))


def norm_rotated(parts: Sequence[Tensor], weights: Sequence[Tensor], eps: float, turns: Tensor) -> Tensor:
    """RMSNorm of each head and then its rotation, of parts that come one after the other: queries, or keys.

    Compiled, the second channels of all pairs come behind the first ones: attention does not see it, and they need not
    be written one by one.

    Args:
        parts: (N, T_k, H, D)
        weights: of each part's norm (D,)
        turns: (T, D/2, 2), cosine and sine of the angle by which a pair of channels turns.
    """
    if _is_plain(*weights):
        normed = [F.rms_norm(part, part.shape[-1:], w, eps) for part, w in zip(parts, weights, strict=True)]
        whole = torch.cat(normed, 1)
        a, b = whole.to(torch.promote_types(whole.dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = turns[:, None].unbind(-1)
        turned = a * cos - b * sin, a * sin + b * cos
        y = torch.cat(turned, -1) if torch.compiler.is_compiling() else torch.stack(turned, -1).flatten(-2)
        return y.to(whole.dtype)
    return _NormRotated.apply(eps, torch.view_as_complex(turns), list(weights), *parts)


def _is_plain(*frozen: Tensor) -> bool:
    return torch.compiler.is_compiling() or any(one.requires_grad for one in frozen)


class _Norm:
    def __init__(self, eps: float) -> None:
        self._eps = eps

    def __call__(self, x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
        return _norm(x, factor, shift, self._eps)[0]


def _norm(x: Tensor, factor: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if _is_one(x, factor):
        return torch.native_layer_norm(x, x.shape[-1:], factor.flatten(), shift.flatten(), eps)
    y, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
    dtype = torch.promote_types(x.dtype, factor.dtype)
    return y.to(dtype).mul_(factor).add_(shift), mean, deviation


def _is_one(x: Tensor, factor: Tensor) -> bool:
    """Whether all tokens have the same factor (one sample): it is then what a norm's own weight is."""
    return factor.numel() == x.shape[-1] and factor.dtype == x.dtype


class _Modulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, shift: Tensor, eps: float) -> Tensor:
        y, mean, deviation = _norm(x, factor, shift, eps)
        ctx.save_for_backward(x, factor, mean, deviation)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, factor, mean, deviation = ctx.saved_tensors
        weight = factor.flatten() if _is_one(x, factor) else None
        inner = gradient if weight is not None else gradient * factor
        found = torch.ops.aten.native_layer_norm_backward(
            inner.to(x.dtype), x, x.shape[-1:], mean, deviation, weight, None, [True, False, False]
        )
        return found[0], None, None, None


def _gelu(u: Tensor, before: Tensor | None = None) -> Tensor:
    if before is None:
        return F.gelu(u, approximate="tanh")
    y = u.new_empty(*u.shape[:-1], before.shape[-1] + u.shape[-1])
    left, right = y.split([before.shape[-1], u.shape[-1]], -1)
    left.copy_(before)
    torch.ops.aten.gelu.out(u, approximate="tanh", out=right)
    return y


_A = 2 * math.sqrt(2 / math.pi)
_B = _A * 0.044715
"""GELU(u) = u (1 + tanh v) / 2, v = √(2/π) (u + 0.044715 u³); here 2 v = u (A + B u²)."""


def _gelu_by_exp(u: Tensor) -> Tensor:
    """The same, as (1 + tanh v) / 2 = 1 / (1 + exp(-2 v)): compiled, an exponential takes a third of a tanh's time."""
    return u * torch.sigmoid(u * (_A + _B * u * u))


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, before: Tensor | None) -> Tensor:
        ctx.save_for_backward(u)
        return _gelu(u, before)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        left, right = gradient.split([gradient.shape[-1] - u.shape[-1], u.shape[-1]], -1)
        inner = torch.ops.aten.gelu_backward(right, u, approximate="tanh")
        return inner, left if ctx.needs_input_grad[1] else None


class _NormRotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, turns: Tensor, weights: list[Tensor], *parts: Tensor) -> Tensor:
        lengths = [part.shape[1] for part in parts]
        y = parts[0].new_empty(parts[0].shape[0], sum(lengths), *parts[0].shape[2:])
        inverses = []
        places = zip(parts, weights, y.split(lengths, 1), turns.split(lengths), strict=True)
        for part, weight, place, turn in places:
            x = part.float() if part.dtype.itemsize < 4 else part
            inverse = _inverse_length(x, eps)
            normed = (x * inverse).mul_(weight)
            if x is part:
                torch.mul(_pairs(normed), turn[:, None], out=_pairs(place))
            else:
                place.copy_(_turned(normed.to(part.dtype).float(), turn))  # rounded as between two operations
            inverses.append(inverse)
        ctx.turns, ctx.weights, ctx.lengths = turns, weights, lengths
        ctx.save_for_backward(*parts, *inverses)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        saved, count, found = ctx.saved_tensors, len(ctx.lengths), []
        parts, inverses = saved[:count], saved[count:]
        places = zip(gradient.split(ctx.lengths, 1), ctx.turns.split(ctx.lengths), strict=True)
        for part, inverse, weight, (place, turn) in zip(parts, inverses, ctx.weights, places, strict=True):
            x = part.float() if part.dtype.itemsize < 4 else part
            inner = _turned(place.to(x.dtype), turn.conj()).mul_(weight)
            along = (inner * x).sum(-1, keepdim=True).mul_(inverse.square()).mul_(-1 / x.shape[-1])
            found.append(inner.addcmul_(x, along).mul_(inverse).to(part.dtype))
        return None, None, None, *found


def _inverse_length(x: Tensor, eps: float) -> Tensor:
    """1 / √(mean(x²) + ε) (…, 1)"""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs of channels of x (N, T, H, D) times turns (T, D/2)."""
    if x.stride(-1) != 1 or any(step % 2 for step in x.stride()[:-1]):  # attention's gradient may be laid out anyhow
        x = x.contiguous()
    return torch.view_as_real(_pairs(x) * turns[:, None]).flatten(-2)


def _pairs(x: Tensor) -> Tensor:
    """Pairs of channels as complex numbers."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
