"""Dropout as a function of its place: what is dropped is computed anew wherever it is needed, and never kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..randomness import seed_of


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of (place, layer), the same on every device and when computed again."""

    def __init__(self, rate: float, layer: str) -> None:
        super().__init__()
        self.rate, self.layer = rate, layer
        self.place: tuple[int | str, ...] = ()

    @property
    def seed(self) -> int | None:
        """Of the masks at this place; None where nothing is dropped."""
        if not self.training or not self.place or not self.rate:
            return None
        return seed_of("lora_dropout", self.layer, *self.place)

    def forward(self, x: Tensor) -> Tensor:
        seed = self.seed
        if seed is None:
            return x
        dropped: Tensor = _Dropout.apply(x, seed, self.rate)
        return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: int, rate: float) -> Tensor:
        ctx.seed, ctx.rate = seed, rate
        return dropped(x, seed, rate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return dropped(gradient, ctx.seed, ctx.rate), None, None


def dropped(x: Tensor, seed: int, rate: float) -> Tensor:
    """x with a share of its elements set to zero, chosen by `seed` and their number, and the others made larger."""
    return x * kept(x.numel(), seed, rate, x.device).view(x.shape).to(x.dtype).mul_(1 / (1 - rate))


def kept(count: int, seed: int, rate: float, device: torch.device) -> Tensor:
    """Which of `count` elements are kept, as booleans.

    A hash of each pair of elements' number gives 16 bits to each of the two, so that the rate is rounded to 1/65536.
    The hash is lowbias32 (Wellons 2018), with half of the seed put in before and half of it between its rounds.
    """
    low, high = (_signed(seed & 0xFFFFFFFF), _signed(seed >> 32 & 0xFFFFFFFF))
    bits = torch.arange((count + 1) // 2, dtype=torch.int32, device=device).add_(low)
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))  # a shift copies the sign
        bits.mul_(factor).bitwise_xor_(high)
        high = 0
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    return bits.view(torch.int16)[:count] >= round(rate * 65536) - 32768


def _signed(value: int) -> int:
    """32 bits as torch's int32."""
    return value - (1 << 32) if value >> 31 else value
