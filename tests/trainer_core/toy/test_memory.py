"""Ten runs in one process: what one has used is gone when the next begins."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from trainer_core.config import JobConfig
from trainer_core.families import registry

from .family import Provider
from .runs import run_of


def held() -> int:
    """Bytes of all tensors there are, but for those without bytes that a compiler of an earlier test may have left."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":  # isinstance would wake lazy modules
            with suppress(RuntimeError):
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


def test_host_memory_does_not_grow(
    job_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do tensors stay, nor does the process grow by what they leave: less than half a megabyte a run."""
    monkeypatch.setattr(registry, "_PROVIDERS", [])
    registry.register_provider(Provider())
    job = job_of(
        model={"family": "toy", "device": "cpu"},
        adapter={"targets": "all"},
        train={"steps": 4, "batch_size": 2, "ema_decay": 0.9},
        sample={"prompts": ["a [trigger]"], "every": 2},
    )
    found = []
    for runs in (2, 10):  # what is cached on first use is there after two
        for _ in range(runs):
            assert run_of(job, tmp_path).run_here(lambda _: None) == "finished"
        found.append((held(), psutil.Process().memory_info().rss))
    (tensors, memory), (tensors_then, memory_then) = found
    assert tensors_then == tensors
    assert memory_then - memory < 10 * (1 << 19)
