"""Dropout as a function of its place: what is dropped is computed anew wherever it is needed, and never kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..randomness import seed_of


class Mask(NamedTuple):
    """What is dropped of the tensors of one layer in one pass."""

    seed: int
    rate: float
    first: int
    """Of a micro-batch that is trained in parts, the place of this part's first sample."""
    samples: int
    """In this part; the tensors have them in their outermost dimension."""

    def drop(self, x: Tensor) -> Tensor:
        """x (…) with a share of its elements set to zero, chosen by their numbers, and the others made larger."""
        # what is not of samples, such as one text for all of them, is the same for every part
        first, samples = (self.first, self.samples) if x.numel() % self.samples == 0 else (0, 1)
        chosen = kept(range(first, first + samples), x.numel() // samples, self.seed, self.rate, x.device)
        return x * chosen.reshape(x.shape).to(x.dtype).mul_(1 / (1 - self.rate))


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of (place, layer, sample), the same on every device and when computed again."""

    def __init__(self, rate: float, layer: str) -> None:
        super().__init__()
        self.rate, self.layer = rate, layer
        self.place: tuple[int | str, ...] = ()
        self.part = (0, 1)
        """Place of the first sample in its micro-batch, and how many there are."""

    @property
    def mask(self) -> Mask | None:
        """Of this place; None where nothing is dropped."""
        if not self.rate or not self.training or not self.place:  # compiled, whoever reads the place compiles for it
            return None
        return Mask(seed_of("lora_dropout", self.layer, *self.place), self.rate, *self.part)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask
        if mask is None:
            return x
        dropped: Tensor = _Dropout.apply(x, mask)
        return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Mask) -> Tensor:
        ctx.mask = mask
        return mask.drop(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.mask.drop(gradient), None


def kept(samples: range, count: int, seed: int, rate: float, device: torch.device) -> Tensor:
    """Which of `count` elements of each of some samples are kept, as booleans (samples, count).

    A hash of the sample's and of each pair of elements' number gives 16 bits to each of the two, so that the rate is
    rounded to 1/65536. The hash is lowbias32 (Wellons 2018), with half of the seed put in before and half of it between
    its rounds; so is the sample, multiplied to keep samples far from each other (Weyl's sequence).
    """
    low, high = (_signed(seed & 0xFFFFFFFF), _signed(seed >> 32 & 0xFFFFFFFF))
    sample = torch.arange(samples.start, samples.stop, dtype=torch.int32, device=device).mul_(-0x61C88647).unsqueeze(1)
    bits = torch.arange((count + 1) // 2, dtype=torch.int32, device=device) + (sample + low)
    between: Tensor | int = sample ^ high
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))  # a shift copies the sign
        bits.mul_(factor).bitwise_xor_(between)
        between = 0
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    return bits.view(torch.int16)[:, :count] >= round(rate * 65536) - 32768


def _signed(value: int) -> int:
    """32 bits as torch's int32."""
    return value - (1 << 32) if value >> 31 else value
