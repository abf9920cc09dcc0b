"""Rotation by the regular Hadamard matrix ("ConvRot"): it spreads outliers over a block of columns.

Regular: its rows all have the same sum. It is symmetric and its own inverse. ComfyUI's int8 files are rotated by it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .constant import constant

LARGEST = 256


def block_of(columns: int) -> int:
    """How many columns are rotated together: the largest power of 4, up to 256, that divides them; 1 is none."""
    block = LARGEST
    while columns % block:
        block //= 4
    return block


def rotated(x: Tensor, block: int) -> Tensor:
    """The last dimension of a tensor (…, columns) rotated block by block, in the tensor's precision."""
    if block == 1:
        return x
    return (x.reshape(-1, block) @ _hadamard(block, x.dtype, x.device)).view(x.shape)


@constant
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (size, size), of ± 1 / √size: a power of two, exact in any precision."""
    smallest = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1.0]])
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, smallest)
    return (matrix / size**0.5).to(device=device, dtype=dtype)
