"""Levels as dense as weights are (Lloyd-Max), in small groups: 5, 4, 3 and 2 bits.

A code is a sign and the place of a magnitude among the levels, which fit Gaussian weights that are divided by the
largest of their group (`benchmarks/formats.py --levels` computes them). The scale of a group starts as its largest
weight and is refitted twice by least squares, with the codes chosen again each time (ALS). It is held in 8 bits as a
logarithm, relative to the largest one of the row, which is in fp32: fp8 would be as large and three times as coarse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .constant import constant
from .format import TINY, Format, grouped, groups, spread
from .shards import packed, values

_REFITS = 2
"""More than two gain nothing that can be measured."""
_PER_OCTAVE = 16
_SCALES = (0.0, *(2 ** ((code - 255) / _PER_OCTAVE) for code in range(1, 256)))
"""What the codes of scales stand for."""
_GRID = 4096
"""Places between 0 and 1 at which the nearest level is looked up: a search among the levels takes ten times as long."""


class Codebook(Format):
    def __init__(self, group: int, levels: tuple[int, ...]) -> None:
        """`levels`: the magnitudes in ten-thousandths, of which there are 2, 4, 8 or 16, in order."""
        self.group, self._levels = group, tuple(level / 10_000 for level in levels)
        bits = len(levels).bit_length() - 1
        self._with_sign = bits in (1, 3)
        """Whether sign and magnitude share a shard; else signs have one of their own."""
        self._bits = bits + self._with_sign

    def blank(self, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
        number = groups(columns, self.group)
        wide = number * self.group

        def shard(bits: int) -> dict[str, Tensor]:
            return {f"codes_{bits}": torch.empty(rows, wide * bits // 8, dtype=torch.uint8, device=device)}

        return {
            **shard(self._bits),
            **({} if self._with_sign else shard(1)),
            "scales": torch.empty(rows, number, dtype=torch.uint8, device=device),
            "scale": torch.empty(rows, 1, device=device),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        weight = grouped(weight, self.group)
        size = weight.abs()
        found = size.amax(2, keepdim=True)
        for _ in range(_REFITS):
            level = self._nearest(size, found, _levels_on_grid(self._levels, weight.device))
            found = (size * level).sum(2, keepdim=True) / level.square().sum(2, keepdim=True)
        scale = found.amax(1, keepdim=True)
        exponent = (found / scale.clamp_min(TINY)).log2() * _PER_OCTAVE + 255
        scales = exponent.round_().clamp_(0, 255).to(torch.uint8).squeeze(2)
        scale = scale.squeeze(2)
        found = self._group_scales(scales, scale)[..., None]
        codes = self._nearest(size, found, _codes_on_grid(self._levels, weight.device)).flatten(1)
        signs = (weight < 0).flatten(1).to(torch.uint8)
        shards = {
            f"codes_{self._bits}": packed(codes + signs * len(self._levels) if self._with_sign else codes, self._bits)
        }
        if not self._with_sign:
            shards["codes_1"] = packed(signs, 1)
        return {**shards, "scales": scales, "scale": scale}

    def decode(self, parts: dict[str, Tensor], columns: int, dtype: torch.dtype) -> Tensor:
        negative = tuple(-level for level in self._levels) if self._with_sign else ()
        found = values(parts[f"codes_{self._bits}"], self._bits, (*self._levels, *negative), dtype)
        if not self._with_sign:
            found = found * values(parts["codes_1"], 1, (1.0, -1.0), dtype)
        scales = self._group_scales(parts["scales"], parts["scale"]).to(dtype)
        return (found * spread(scales, self.group))[:, :columns].contiguous()

    def _group_scales(self, scales: Tensor, scale: Tensor) -> Tensor:
        """(rows, groups), in fp32"""
        return values(scales, 8, _SCALES, torch.float32) * scale

    def _nearest(self, size: Tensor, scale: Tensor, grid: Tensor) -> Tensor:
        """What a grid holds for the level next to each magnitude."""
        places = (size / scale.clamp_min(TINY)).mul_(_GRID).clamp_(max=_GRID - 1).int()
        return grid.index_select(0, places.flatten()).view(size.shape)


FIVE = Codebook(32, (233, 700, 1173, 1653, 2143, 2649, 3168, 3712, 4279, 4879, 5523, 6217, 6976, 7824, 8785, 9929))
FOUR = Codebook(16, (514, 1550, 2616, 3738, 4949, 6311, 7894, 9836))
THREE = Codebook(16, (1055, 3266, 5833, 9283))
TWO = Codebook(16, (2116, 7305))


@constant
def _levels_on_grid(levels: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(levels, device=device)[_codes_on_grid(levels, device).long()]


@constant
def _codes_on_grid(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """The place of the level that is next to (i + ½) / _GRID."""
    exact = torch.tensor(levels, dtype=torch.float64)
    middles = (exact[1:] + exact[:-1]) / 2
    places = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
    return torch.searchsorted(middles, places).to(device=device, dtype=torch.uint8)
