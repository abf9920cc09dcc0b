"""float8 (e4m3), with a scale for each row. Smaller groups would not help: each code has an exponent of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .format import TINY, Format, scaled

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max


class Float8(Format):
    def blank(self, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "codes": torch.empty(rows, columns, dtype=DTYPE, device=device),
            "scale": torch.empty(rows, 1, device=device),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        codes, scale = row_codes(weight)
        return {"codes": codes, "scale": scale}

    def decode(self, parts: dict[str, Tensor], columns: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        return scaled(parts["codes"], parts["scale"], dtype)


def row_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 codes (rows, columns) and fp32 scales (rows, 1) of a matrix in floating point."""
    scale = (x.abs().amax(-1, keepdim=True).float() / LARGEST).clamp_min(TINY)
    return (x / scale).clamp_(-LARGEST, LARGEST).to(DTYPE), scale
