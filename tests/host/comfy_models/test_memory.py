"""No memory grows over ten runs in one process, however they end."""

from __future__ import annotations

import gc
import itertools
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .hosted import linked, trained
from .zoo import MODELS

torch = pytest.importorskip("torch")

ENDS = ("finished", "failed", "stopped")
RUNS, SETTLED = 10, 2
"""By then, what is imported, compiled or cached on first use is there, for each end."""


def _live() -> tuple[Counter[str], int]:
    """Tensors and modules that somebody holds, by class, and resident bytes."""
    import comfy.model_management

    for _ in range(3):
        gc.collect()
    found = Counter(type(one).__name__ for one in gc.get_objects() if _counts(one))
    found["loaded models"] = len(comfy.model_management.current_loaded_models)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return found, pages * os.sysconf("SC_PAGE_SIZE")


def _counts(one: Any) -> bool:
    kind = type(one)  # isinstance would wake lazy modules
    return issubclass(kind, (torch.Tensor, torch.nn.Module)) or kind.__name__ in (
        "ModelPatcher",
        "TrainedModel",
        "Linked",
    )


def _run(model: Any, end: str, data: Path, root: Path) -> None:
    calls = itertools.count()

    def watch(out: Any, _options: Any) -> Any:
        if next(calls) == 20 and end == "failed":
            raise RuntimeError("this node is broken")
        return out

    watched = model.clone()
    watched.set_model_attn1_output_patch(watch)
    job = {
        "name": "memory",
        "model": linked(watched),
        "adapter": {"rank": 4},
        "datasets": [{"folder": str(data), "resolutions": [64]}],
        "train": {"steps": 4, "batch_size": 2, "gradient_checkpointing": True},
        "sample": {"prompts": ["a b"], "every": 4, "steps": 2, "width": 64, "height": 64},
    }
    if end == "stopped":
        job["train"] |= {"steps": 10_000}
    run = trained(root, job, lambda one: one.stop() if end == "stopped" and next(calls) > 40 else None)
    assert run.run.status()["state"] == end


def test_ten_runs(make_dataset: Any, tmp_path: Path) -> None:
    model, data, seen = MODELS["flux1"].make(), make_dataset(2), []
    for number in range(RUNS):
        for end in ENDS if number < SETTLED else ENDS[number % 3 :][:1]:
            _run(model, end, data, tmp_path / "runs")
        seen.append(_live())
    first, last = seen[SETTLED - 1], seen[-1]
    assert last[0] - first[0] == Counter()
    assert last[0]["loaded models"] == 0
    logging.getLogger(__name__).info("resident memory: %+.1f MB", (last[1] - first[1]) / 1e6)
    assert last[1] - first[1] < 16 << 20
