"""Evenly spaced levels between the smallest and the largest weight of a group: 6 bits, in groups of 64.

Step and middle of a group are in fp16, relative to the largest weight of the row, which is in fp32: no weight is too
large or too small for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .format import TINY, Format, grouped, groups, spread
from .shards import packed, values

_HALF = 32
"""The code whose value is the middle of its group."""
_HIGH = tuple(float(4 * code - _HALF) for code in range(16))
_LOW = tuple(float(code) for code in range(4))


class SixBit(Format):
    group = 64

    def blank(self, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
        number = groups(columns, self.group)
        wide = number * self.group
        return {
            "codes_4": torch.empty(rows, wide // 2, dtype=torch.uint8, device=device),
            "codes_2": torch.empty(rows, wide // 4, dtype=torch.uint8, device=device),
            "step": torch.empty(rows, number, dtype=torch.float16, device=device),
            "middle": torch.empty(rows, number, dtype=torch.float16, device=device),
            "scale": torch.empty(rows, 1, device=device),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        scale = weight.abs().amax(1, keepdim=True).clamp_min(TINY)
        relative = grouped(weight / scale, self.group)
        low, high = relative.amin(2, keepdim=True), relative.amax(2, keepdim=True)
        step = ((high - low) / 63).half()
        middle = (low + step * _HALF).half()
        codes = ((relative - middle) / step.float().clamp_min(TINY) + _HALF).round_().clamp_(0, 63).to(torch.uint8)
        codes = codes.flatten(1)
        return {
            "codes_4": packed(codes >> 2, 4),
            "codes_2": packed(codes & 3, 2),
            "step": step.squeeze(2),
            "middle": middle.squeeze(2),
            "scale": scale,
        }

    def decode(self, parts: dict[str, Tensor], columns: int, dtype: torch.dtype) -> Tensor:
        found = values(parts["codes_4"], 4, _HIGH, dtype).add_(values(parts["codes_2"], 2, _LOW, dtype))
        step, middle = ((parts[name] * parts["scale"]).to(dtype) for name in ("step", "middle"))
        found = torch.addcmul(spread(middle, self.group), found, spread(step, self.group))
        return found[:, :columns].contiguous()
