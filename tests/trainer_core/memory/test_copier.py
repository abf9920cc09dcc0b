"""Copiers: what reaches a slot, from where; CUDA's on streams that do nothing, since tests have no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer_core.memory import copier as copiers
from trainer_core.memory.copier import Copier, CudaCopier, copier_for

from .streamed_training import Training, same, whole

CPU = torch.device("cpu")


class Streams:
    """What of torch.cuda a copier uses: operations happen when they are asked for, and events know whether they did."""

    def __init__(self, patch: pytest.MonkeyPatch, refuses: int = 0) -> None:
        """
        Args:
            refuses: how often memory is locked before that is refused; 0: always.
        """
        self.refuses, self.locked, self.compute = refuses, set(), _Stream()
        for name in ("Stream", "Event", "stream", "current_stream", "synchronize", "cudart"):
            patch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self, _device: Any) -> Any:  # noqa: N802
        return _Stream()

    def Event(self) -> Any:  # noqa: N802
        return _Event()

    @contextmanager
    def stream(self, one: Any) -> Iterator[None]:
        yield

    def current_stream(self, _device: Any) -> Any:
        return self.compute

    def synchronize(self, _device: Any) -> None:
        """Nothing waits."""

    def cudart(self) -> Any:
        return SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=self.locked.remove)

    def _register(self, address: int, _size: int, _flags: int) -> int:
        if self.refuses and len(self.locked) >= self.refuses:
            return 2
        self.locked.add(address)
        return 0


class _Event:
    def __init__(self) -> None:
        self.recorded = False

    def record(self, _stream: Any) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        """Nothing waits."""


class _Stream:
    def wait_event(self, event: _Event) -> None:
        assert event.recorded

    def synchronize(self) -> None:
        """Nothing waits."""


@pytest.mark.parametrize(("limit", "refuses", "locked"), [(1e9, 0, 4), (0, 0, 0), (1e9, 2, 2)])
def test_cuda_copies_from_locked_memory_and_through_a_thread(
    limit: float,
    refuses: int,
    locked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All blocks are locked; none; and two, where the system refuses the third."""
    streams = Streams(monkeypatch, refuses)
    training = Training(4, copier=CudaCopier(CPU, limit))
    assert len(streams.locked) == locked
    assert same(training.outcome(), whole())
    assert (training.streamed._copier._thread is not None) == (locked < 4)
    training.streamed.close()
    assert not streams.locked


def test_an_error_of_the_thread_is_told_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    Streams(monkeypatch)
    training = Training(4, copier=CudaCopier(CPU, 0))
    with monkeypatch.context() as patch:
        patch.setattr(copiers, "_staging", lambda size: size // 0)
        with pytest.raises(ZeroDivisionError):
            training.gradients(0)
    assert torch.equal(training.gradients(0), Training(recompute=False).gradients(0))


def test_devices_without_streams_copy_at_once() -> None:
    assert same(Training(4, copier=Copier(CPU)).outcome(), whole())


def test_only_where_the_device_has_memory_of_its_own() -> None:
    assert copier_for(CPU) is copier_for(torch.device("mps")) is None
    assert type(copier_for(torch.device("xpu"))) is Copier


def test_what_can_be_locked_leaves_the_system_alive() -> None:
    import psutil

    memory = psutil.virtual_memory()
    assert copiers.pinnable() <= 0.8 * memory.total
    assert copiers.pinnable() < memory.available - 2**30
    assert copiers.pinnable(memory.total) < 0
