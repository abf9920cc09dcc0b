"""A run that is short of memory goes on with the next setting of its plan, and makes the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_core.config import MemoryConfig
from trainer_core.demo import plain_job
from trainer_core.job import TrainingJob
from trainer_core.memory.cost import Rates, relative_time
from trainer_core.memory.plan import Plan
from trainer_core.memory.prediction import Outline, Use
from trainer_core.memory.settings import MemorySettings
from trainer_core.runs.events import Event, Warning
from trainer_core.runs.run_folder import RunFolder
from trainer_core.training.step import Objective

FULL = MemorySettings()


def trained(folder: Path, **memory: Any) -> tuple[bytes, list[Event]]:
    """The LoRA file of a short run, and what was told."""
    job = plain_job()
    train = job.train.but(steps=3, batch_size=2, gradient_checkpointing=True)
    job = job.model_copy(update={"train": train, "memory": MemoryConfig(**memory)})
    events: list[Event] = []
    run = TrainingJob(RunFolder.create(folder, job), job)
    assert run.run_here(events.append) == "finished"
    checkpoint = run.run.latest()
    assert checkpoint
    tensors = (checkpoint.path / "state.safetensors").read_bytes()
    return tensors[8 + int.from_bytes(tensors[:8], "little") :], events


def test_the_next_setting_makes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained(tmp_path / "whole")
    predict, passes = Objective.predict, []

    def short(self: Objective, *args: Any, **given: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        if passes.count(True) in (2, 3):  # the second step, and its repetition
            raise torch.OutOfMemoryError("injected")
        return predict(self, *args, **given)

    monkeypatch.setattr(Objective, "predict", short)
    after, events = trained(tmp_path / "short")
    assert after == whole
    told = [event.message for event in events if isinstance(event, Warning)]
    assert [one.partition("from now on ")[2].partition(",")[0] for one in told] == [
        "gradient checkpointing of every 2nd block",
        "gradient checkpointing",
    ]


def plan(activations: dict[MemorySettings, float], **more: Any) -> Plan:
    """A model of ten blocks of 1 GB, 10 PFLOP a step, on a device that computes 100 TFLOP and copies 20 GB a second."""
    gb = 10**9

    def use(settings: MemorySettings) -> Use:
        flops = 1e16 * (1.5 if settings.recompute else 1)
        inputs = 2.0 * gb if settings == FULL else activations[settings] * gb
        return Use({"weights": 10 * gb, "activations": activations[settings] * gb}, flops, inputs)

    outline = Outline([gb] * 10, 10 * gb, 5 * gb, gb, {"blocks": 10})
    return Plan(use, outline, Rates(100e12, 20e9), **more)


KEPT = {
    MemorySettings(recompute=False): 30.0,
    MemorySettings(every=4): 24.0,
    MemorySettings(every=2): 18.0,
    MemorySettings(keep_attention=True): 6.0,
    FULL: 4.0,
}


@pytest.mark.parametrize(
    ("gb", "expected"),
    [
        (50, MemorySettings(recompute=False)),
        (36, MemorySettings(every=4)),
        (30, MemorySettings(every=2)),
        (17, MemorySettings(keep_attention=True)),
        (15, FULL),
    ],
)
def test_the_fastest_that_fits_is_chosen(gb: float, expected: MemorySettings) -> None:
    row = plan(KEPT).chosen(gb * 1e9)
    assert row
    assert row.settings == expected


def test_blocks_are_streamed_when_nothing_else_fits() -> None:
    row = plan(KEPT).chosen(10e9)
    assert row
    assert row.settings.streamed
    assert row.fits(10e9)
    assert plan(KEPT, may_stream=False).chosen(10e9) is None
    assert plan(KEPT, may_recompute=False).chosen(17e9) is None
    assert plan(KEPT).chosen(2e9) is None


def test_only_inputs_wait_in_host_memory() -> None:
    """2 GB of them, but for those on their way; what attention gave stays."""
    kept = MemorySettings(keep_attention=True, offload_inputs=True)
    assert plan(KEPT).row(kept).host == pytest.approx(1.6e9)
    assert plan(KEPT).row(kept).peak == pytest.approx(14.4e9)


def test_what_was_measured_corrects_all_rows() -> None:
    made = plan(KEPT)
    row = made.row(FULL)
    made.correct(row, row.peak + 2e9)
    assert made.row(FULL).peak == pytest.approx(16e9)
    assert made.row(MemorySettings(keep_attention=True)).peak == pytest.approx(19e9)


def test_copies_hide_from_the_threshold_of_the_reference_on() -> None:
    """T >= s * b * F / (16 * W) forward: 2 FLOPs for each weight and token against b / 8 bytes for each weight."""
    weights, bits, flops, link, share = 1e9, 16, 100e12, 20e9, 0.5
    tokens = share * bits * flops / (16 * link)
    kept = 2 * 2 * weights * tokens  # forward and backward

    def time(scale: float) -> float:
        return relative_time(kept * scale, kept * scale * 1.5, share * weights * bits / 8, 0.0, Rates(flops, link))

    assert time(1.0) == pytest.approx(1.5)
    assert time(0.9) > 1.5
