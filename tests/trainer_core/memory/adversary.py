"""A copier that does all that a device may do: copies late, those to different slots in any order, over garbage."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Adversary:
    """Memory of the CPU as a device, with timing that is against whoever relies on it.

    A slot is overwritten with NaN as soon as a copy to it begins, and has its new contents when somebody waits for it,
    or at any moment before.
    """

    def __init__(self, seed: int = 0, pins: bool = True) -> None:
        """
        Args:
            pins: whether there is page-locked memory.
        """
        self.allocations = self.copies = self.late = 0
        """`late`: how many copies were asked for when they were needed, and not before; with one slot, all seem so."""
        self.fails_at: int | None = None
        """The copy of this number raises an error when it is waited for."""
        self.closed = False
        self._random, self._pins = random.Random(seed), pins
        self._slots: list[Any] = []
        self._pending: list[tuple[Any, Any, int]] = []
        self._last: Any = None
        """The slot that the last call was about, if that began a copy."""

    def allocate(self, size: int) -> Any:
        self.allocations += 1
        memory = torch.full((size,), 0xFF, dtype=torch.uint8)
        slot = SimpleNamespace(memory=memory, holds=None, users=0, calls=0, failed=False)
        self._slots.append(slot)
        return slot

    def pinned(self, size: int) -> Tensor | None:
        return torch.empty(size, dtype=torch.uint8) if self._pins else None

    def copy(self, slot: Any, source: Any) -> None:
        assert slot.users == 0, "the device still computes with what is here"
        self.copies += 1
        slot.calls += 1
        slot.failed = False
        with torch.no_grad():
            slot.memory.fill_(0xFF)  # NaN in all floats that have one
        self._pending.append((slot, source, self.copies))
        self._last = slot
        self._some()

    def wait(self, slot: Any) -> None:
        assert slot.calls, "nothing was copied here"
        self.late += self._last is slot
        self._last = None
        self._some()
        while any(one is slot for one, *_ in self._pending):
            self._oldest_of(slot)
        if slot.failed:
            slot.failed = False
            raise RuntimeError("the link is down")

    def free(self, slot: Any) -> None:
        assert slot.users == 0
        self._last = None
        self._some()

    def finish(self) -> None:
        while self._pending:
            self._oldest_of(self._pending[0][0])

    def close(self) -> None:
        self.finish()
        self.closed = True

    def _some(self) -> None:
        while self._pending and self._random.random() < 0.3:
            self._oldest_of(self._random.choice(self._pending)[0])

    def _oldest_of(self, slot: Any) -> None:
        """Copies to one slot come one after the other."""
        index = next(k for k, (one, *_) in enumerate(self._pending) if one is slot)
        _, source, number = self._pending.pop(index)
        if number == self.fails_at:
            slot.failed = True
            return
        with torch.no_grad():
            source.write(slot.memory[: source.size])
