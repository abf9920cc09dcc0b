"""Whole runs of ComfyUI's own models whose blocks are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .hosted import linked, lora_of, trained
from .zoo import MODELS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything but the C++ compiler, which takes minutes."""
    from torch._dynamo import lookup_backend

    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda _name: lookup_backend("aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def run(folder: Path, compiled: bool, **train: Any) -> Any:
    data = folder / "data"
    data.mkdir(parents=True)
    for number, (size, colour) in enumerate([((128, 128), "red"), ((128, 128), "blue")]):
        Image.new("RGB", size, colour).save(data / f"{number}.png")
    return trained(
        folder,
        {
            "name": "tiny",
            "model": linked(MODELS["flux1"].make()),
            "adapter": {"rank": 2},
            "datasets": [{"folder": str(data), "resolutions": [128], "default_caption": "a thing"}],
            "train": {"steps": 3, "learning_rate": 1e-2, "optimizer": "SGD", **train},
            "memory": {"plan": "manual", "compile": compiled},
            "sample": {"prompts": ["a thing"], "steps": 2, "width": 128, "height": 128},
        },
    )


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_runs_are_those_of_plain_blocks(gradient_checkpointing: bool, tmp_path: Path) -> None:
    """Of a model whose blocks change what they are given. The attention is what ComfyUI has on a CPU."""
    runs = [run(tmp_path / str(way), way, gradient_checkpointing=gradient_checkpointing) for way in (False, True)]
    assert "compile" not in (runs[1].run.path / "log.txt").read_text(encoding="utf-8")
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 1
    assert not counters["graph_break"]
    plain, compiled = (lora_of(one) for one in runs)
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-6)
    assert any(value.any() for key, value in plain.items() if "lora_B" in key)
    pictures = [one.run.sample_paths()[-1] for one in runs]
    differences = abs(np.subtract(*(np.asarray(Image.open(one), float) for one in pictures)))
    assert differences.max() <= 1
