"""What a format is: the tensors that stand for a weight, and how its rows become these and weights again."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny
"""In place of a scale of zero, so that nothing is divided by it."""


class Format(ABC):
    """Rows are independent of each other, so that a weight can be encoded in chunks of them."""

    group = 1
    """Weights of a row that share a scale; a shorter row has no use for the format."""

    @abstractmethod
    def blank(self, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
        """The tensors for a weight (rows, columns), not yet filled; the first dimension of each is `rows`."""

    @abstractmethod
    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """What stands for a weight (rows, columns), finite, in fp32, and rotated by `rotation`."""

    @abstractmethod
    def decode(self, parts: dict[str, Tensor], columns: int, dtype: torch.dtype) -> Tensor:
        """The weight (rows, columns) that they stand for, rotated if the format's weights are."""

    def rotation(self, columns: int) -> int:  # noqa: ARG002
        """How many columns are rotated together before they are encoded; 1 is none."""
        return 1


def grouped(weight: Tensor, group: int) -> Tensor:
    """A weight (rows, columns) as (rows, groups, group); the last column is repeated to the end of the last group."""
    missing = -weight.shape[1] % group
    if missing:
        weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1)
    return weight.reshape(len(weight), -1, group)


def scaled(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes · scale in a precision; through fp32 for fp16, in which scales would be too small."""
    exact = torch.float32 if dtype == torch.float16 else dtype
    return (codes.to(exact) * scale.to(exact)).to(dtype)


def groups(columns: int, group: int) -> int:
    """How many groups a row has."""
    return -(-columns // group)


def spread(of_groups: Tensor, group: int) -> Tensor:
    """A number of each group (rows, groups) for each of its weights (rows, groups · group)."""
    return of_groups[..., None].expand(-1, -1, group).flatten(1)
