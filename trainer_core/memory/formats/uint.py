"""AI Toolkit's uint3 and uint4, which are torchao's: what its accuracy recovery adapters were trained on, bit for bit.

Evenly spaced levels in groups of 64, of which one is zero. Every operation is in bf16, as there: in fp32 some weights
would get other codes. For all else the formats of as many bits are more accurate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import spread
from .format import Format, grouped, groups
from .shards import packed, values

_EPSILON = torch.finfo(torch.float32).eps
"""The smallest step."""


class Uint(Format):
    group = 64

    def __init__(self, bits: int) -> None:
        self._most = 2**bits - 1
        self._shards = [width for width in (4, 2, 1) if bits & width]
        """Widths of the parts of a code, the highest bits first."""

    def blank(self, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
        number = groups(columns, self.group)
        codes = {
            f"codes_{width}": torch.empty(rows, number * self.group * width // 8, dtype=torch.uint8, device=device)
            for width in self._shards
        }
        step = torch.empty(rows, number, dtype=torch.bfloat16, device=device)
        return {**codes, "step": step, "zero": torch.empty(rows, number, dtype=torch.uint8, device=device)}

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        rounded = grouped(weight.bfloat16(), self.group)
        low, high = rounded.amin(2, keepdim=True).clamp(max=0), rounded.amax(2, keepdim=True).clamp(min=0)
        step = ((high - low) / self._most).clamp(min=_EPSILON)
        zero = (-(low / step).round()).clamp(0, self._most)
        codes = ((rounded * (1.0 / step)).round() + zero).clamp(0, self._most).to(torch.uint8).flatten(1)
        parts, below = {}, sum(self._shards)
        for width in self._shards:
            below -= width
            parts[f"codes_{width}"] = packed((codes >> below) & (2**width - 1), width)
        return {**parts, "step": step.squeeze(2), "zero": zero.squeeze(2).to(torch.uint8)}

    def decode(self, parts: dict[str, Tensor], columns: int, dtype: torch.dtype) -> Tensor:
        found, below = None, sum(self._shards)
        for width in self._shards:
            below -= width
            levels = tuple(float(code << below) for code in range(2**width))
            part = values(parts[f"codes_{width}"], width, levels, torch.bfloat16)
            found = part if found is None else found.add_(part)
        assert found is not None
        zero = parts["zero"].to(torch.bfloat16)
        found = found.sub_(spread(zero, self.group)).mul_(spread(parts["step"], self.group))
        return found[:, :columns].to(dtype).contiguous()
