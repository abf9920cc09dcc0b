"""int8: the rotated weight, with a scale for each row. Bit for bit ComfyUI's `int8_tensorwise` with `convrot`.

It is rotated in fp32, as in the files that are published. Where no power of 4 divides the columns, nothing is
rotated, and ComfyUI's files have no `convrot`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .format import Format, scaled
from .rotation import block_of


class Int8(Format):
    def blank(self, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
        return {
            "codes": torch.empty(rows, columns, dtype=torch.int8, device=device),
            "scale": torch.empty(rows, 1, device=device),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        codes, scale = row_codes(weight)
        return {"codes": codes, "scale": scale}

    def decode(self, parts: dict[str, Tensor], columns: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        return scaled(parts["codes"], parts["scale"], dtype)

    def rotation(self, columns: int) -> int:
        return block_of(columns)


def row_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (rows, columns) and fp32 scales (rows, 1) of a matrix in floating point."""
    scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp_min(1e-30)
    return (x / scale.to(x.dtype)).round_().clamp_(-128, 127).to(torch.int8), scale
