"""Randomness as a function of where it is used, never of what was drawn before.

Every draw names its place: the job's seed, the step, what it is for, which item. So a resumed run draws the same
numbers without restoring any state, a preview cannot disturb training, and a batch of four sees the same noise as
four accumulated batches of one. Nothing here touches torch's global generators, which ComfyUI shares with us.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*place: int | str) -> int:
    """A 63-bit seed for a place, the same on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in place)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator for a place. Draw on the CPU and move: then the numbers do not depend on the device."""
    import torch

    return torch.Generator().manual_seed(seed_of(*place))


def uniform(*place: int | str) -> float:
    """One number in [0, 1) for a place, without torch."""
    return (seed_of(*place) >> 10) / 2**53  # 53 bits are what a float holds: 1.0 cannot come out


def normal_like(shape: Sequence[int], *place: int | str) -> torch.Tensor:
    """Standard normal noise of a shape, float32 on the CPU."""
    import torch

    return torch.randn(tuple(shape), generator=generator(*place))


def permutation(count: int, *place: int | str) -> list[int]:
    """A shuffled range."""
    import random

    order = list(range(count))
    random.Random(seed_of(*place)).shuffle(order)
    return order
