"""How the weights of streamed blocks come to the device while it computes.

A copier knows streams and events, and nothing of blocks: who uses a slot when is told by `streaming.Streamed`.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor


class Slot:
    """A place on the device for the weights of one block at a time; allocated once."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        """uint8 (bytes,)"""
        self.holds: int | None = None
        """The number of the streamed block whose weights are here, or on their way."""
        self.users = 0
        """How many computations that have begun read it."""
        self.ready: Any = None
        """An event: what was copied last has arrived."""
        self.free: Any = None
        """An event: the device has computed what was begun with it."""
        self.sent: Future[None] | None = None
        """A copy that a thread has yet to begin."""


class Source(Protocol):
    """The weights of a block in host memory."""

    size: int
    """In bytes, as a slot holds them."""
    pinned: Tensor | None
    """uint8 (size,): the same in page-locked memory, if they are there."""

    def write(self, memory: Tensor) -> None:
        """Copies them from where they are into uint8 (size,) on the CPU or another device."""


class Copier:
    """For devices without streams: copies at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocate(self, size: int) -> Slot:
        """A slot of so many bytes."""
        return Slot(torch.empty(size, dtype=torch.uint8, device=self.device))

    def pinned(self, size: int) -> Tensor | None:  # noqa: ARG002
        """Page-locked host memory (size,), from which copies are fastest; None where there is none (left)."""
        return None

    def copy(self, slot: Slot, source: Source) -> None:
        """Begins to copy weights into a slot, after what was begun with it before."""
        source.write(slot.memory[: source.size])

    def wait(self, slot: Slot) -> None:
        """What is computed from now on finds in the slot what was copied last."""

    def free(self, slot: Slot) -> None:
        """What is computed from now on does not read the slot: it may be overwritten."""

    def finish(self) -> None:
        """Returns when no copy is under way any more."""

    def close(self) -> None:
        """Finishes, and gives page-locked memory back to the system; its contents stay."""
        self.finish()


class CudaCopier(Copier):
    """Copies on a stream of its own: directly from page-locked memory, else through two page-locked buffers.

    A thread fills these: pages that may be swapped out cannot be copied without the CPU. This class was not run on a
    GPU yet.
    """

    def __init__(self, device: torch.device, limit: float | None = None) -> None:
        """
        Args:
            limit: bytes of host memory that may be page-locked; None is what the system bears (`pinnable`).
        """
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)
        self._limit = limit
        self._pinned: list[Tensor] = []
        self._thread: ThreadPoolExecutor | None = None
        self._staging: list[tuple[Tensor, Any]] = []
        """Buffers, and the event that each one's last copy has left it; the one to use next comes first."""

    def allocate(self, size: int) -> Slot:
        slot = super().allocate(size)
        slot.ready, slot.free = torch.cuda.Event(), torch.cuda.Event()
        self.free(slot)  # what had this memory before may still be computing
        return slot

    def pinned(self, size: int) -> Tensor | None:
        locked = sum(map(len, self._pinned))
        if size > (pinnable(locked) if self._limit is None else self._limit - locked):
            return None
        memory = torch.empty(size, dtype=torch.uint8)
        # torch's own page-locked memory comes in powers of two
        if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size, 0)) != 0:
            self._limit = locked
            _forget_error(self.device)
            return None
        self._pinned.append(memory)
        return memory

    def copy(self, slot: Slot, source: Source) -> None:
        self._begun(slot)
        if source.pinned is not None:
            self._send(slot, source.pinned)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "streaming")
            self._staging = [(torch.empty(0, dtype=torch.uint8), torch.cuda.Event()) for _ in range(2)]
        slot.sent = self._thread.submit(self._stage, slot, source)

    def wait(self, slot: Slot) -> None:
        self._begun(slot)
        torch.cuda.current_stream(self.device).wait_event(slot.ready)

    def free(self, slot: Slot) -> None:
        slot.free.record(torch.cuda.current_stream(self.device))

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.submit(int).result()  # it takes one after the other
        self._stream.synchronize()

    def close(self) -> None:
        super().close()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._staging.clear()
        for memory in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
        self._pinned.clear()

    def _begun(self, slot: Slot) -> None:
        """Waits for the thread to have begun a copy; its error is raised here."""
        if (sent := slot.sent) is not None:
            slot.sent = None
            sent.result()

    def _send(self, slot: Slot, memory: Tensor) -> None:
        with torch.cuda.stream(self._stream), torch.no_grad():
            self._stream.wait_event(slot.free)
            slot.memory[: memory.numel()].copy_(memory, non_blocking=True)
            slot.ready.record(self._stream)

    def _stage(self, slot: Slot, source: Source) -> None:
        self._staging.reverse()
        buffer, left = self._staging[1]
        left.synchronize()
        if buffer.numel() < source.size:
            buffer = _staging(slot.memory.numel())
            self._staging[1] = buffer, left
        source.write(buffer[: source.size])
        self._send(slot, buffer[: source.size])
        left.record(self._stream)


def copier_for(device: torch.device) -> Copier | None:
    """What copies to a device; None where the host's memory is the device's, so that there is nothing to copy."""
    if device.type in ("cpu", "mps"):
        return None
    return CudaCopier(device) if device.type == "cuda" else Copier(device)


def pinnable(locked: int = 0) -> float:
    """Bytes of host memory that can be page-locked beside what is, without starving the system."""
    import psutil

    memory = psutil.virtual_memory()
    most = memory.total * (0.45 if sys.platform == "win32" else 0.8)  # Windows lets drivers lock half of it
    return float(min(most - locked, memory.available - max(2 * 2**30, memory.total / 10)))


def _staging(size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # then the copy itself waits, in the thread
        return torch.empty(size, dtype=torch.uint8)


def _forget_error(device: torch.device) -> None:
    """A refusal would be reported again by the next operation on the device, whatever that is."""
    try:
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
    except RuntimeError:
        pass
