"""Codes of 1, 2 or 4 bits in bytes. Codes of other widths are two such shards: 6 = 4 + 2 bits, 5 = 4 + 1, 3 = 2 + 1.

Neighbours share a byte, the first one in its lowest bits. A byte is turned into the values of all its codes at once,
by a table of 256 rows: what is read and what is written lie side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .constant import constant

_ELEMENTS = {4: torch.int32, 8: torch.int64}
"""Rows of a table of these sizes (bytes) are copied as one number, which is faster."""


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, columns) below 2^bits as bytes (rows, columns · bits / 8)."""
    parts = codes.to(torch.uint8).unflatten(-1, (-1, 8 // bits))
    found = parts[..., 0].clone()
    for place in range(1, 8 // bits):
        found |= parts[..., place] << (place * bits)
    return found


def values(shard: Tensor, bits: int, levels: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """The values (rows, columns) that the codes of a shard stand for: code i for levels[i]."""
    table = _table(bits, levels, dtype, shard.device)
    element = _ELEMENTS.get(table.shape[1] * table.itemsize)
    if element:
        table = table.view(element).flatten()
    found = table.index_select(0, shard.flatten().int())
    return (found.view(dtype) if element else found).view(len(shard), -1)


@constant
def _table(bits: int, levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values of each byte's codes (256, 8 / bits)."""
    places = torch.arange(0, 8, bits)
    codes = (torch.arange(256)[:, None] >> places) & (2**bits - 1)
    return torch.tensor(levels, dtype=torch.float32)[codes].to(device=device, dtype=dtype)
