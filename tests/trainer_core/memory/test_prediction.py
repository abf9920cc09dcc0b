"""What a step is said to take, against what one takes: counted on real tensors, and by torch's own allocator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from trainer_core.config import AdapterConfig, DatasetConfig, JobConfig, ModelConfig, RegularizationConfig, TrainConfig
from trainer_core.families.registry import open_base
from trainer_core.memory.settings import MemorySettings
from trainer_core.memory.tracker import Tracker

from ..families.small_models import small_sd
from .counting import batches_of, counted, predicted

SETTINGS = [MemorySettings(recompute=False), MemorySettings()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    Image.new("RGB", (64, 64), "red").save(made / "a.png")
    (made / "a.txt").write_text("a red circle")
    return made


def job_of(folder: Path, model: ModelConfig, adapter: dict[str, Any] | None = None, **train: Any) -> JobConfig:
    return JobConfig(
        name="counted",
        model=model,
        adapter=AdapterConfig(rank=4, **(adapter or {})),
        datasets=(DatasetConfig(folder=str(folder), resolutions=(64,), trigger="zorble"),),
        train=TrainConfig(steps=2, **train),
        regularization=RegularizationConfig(output_preservation=True, output_preservation_class="circle"),
    )


def embedded_base(_: Path) -> ModelConfig:
    return ModelConfig(source="embedded", device="cpu")


def small_sd15(tmp: Path) -> ModelConfig:
    return ModelConfig(source=str(small_sd(tmp)), device="cpu")


@pytest.fixture(scope="module", params=[embedded_base, small_sd15])
def case(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A job, its base, and its batches."""
    make: Callable[[Path], ModelConfig] = request.param
    model = make(tmp_path_factory.mktemp("base") / "model")
    job = job_of(folder, model, batch_size=3, ema_decay=0.9)
    base = open_base(job.model)
    base.load_text_encoders()
    with torch.no_grad():
        text = base.encode_prompts(["a"])[0]
    base.free_text_encoders()
    return job, base, batches_of(job, base, lambda _: text)


@pytest.mark.parametrize("settings", SETTINGS, ids=["kept", "recomputed"])
def test_a_step_takes_what_was_predicted(case: Any, settings: MemorySettings) -> None:
    job, base, batches = case
    said, real = predicted(job, base, batches, settings), counted(job, base, batches, settings)
    assert said.peak == pytest.approx(real.peak, rel=0.02)
    assert said.flops == real.flops
    assert said.memory["weights"] == real.at_peak["weights"]
    for kind in ("LoRA", "gradients", "moving average", "optimizer", "activations"):
        assert said.memory[kind] == pytest.approx(real.at_peak[kind], rel=0.05)


def test_the_tracker_counts_as_the_allocator_does() -> None:
    weight = torch.ones(256, 512)
    x = torch.ones(64, 512, requires_grad=True)

    def step() -> None:
        (torch.nn.functional.gelu(x @ weight.T) ** 2).sum().backward()
        x.grad = None

    step()
    with Tracker() as tracker:
        tracker.name("weights", [weight, x])
        tracker.start_over()
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    found = tracker.peak - tracker.at_peak["weights"]
    assert found == pytest.approx(allocated(profiler), rel=0.02)


def allocated(profiler: Any) -> int:
    """Most bytes at a time that torch's allocator gave since a profile began, by its own reports."""
    waiting, changes = list(profiler.profiler.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        now += change
        most = max(most, now)
    return most
