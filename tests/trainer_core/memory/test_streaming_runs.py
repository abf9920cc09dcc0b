"""Whole runs with layer offloading: the same losses, previews and LoRA, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.config import JobConfig
from trainer_core.errors import ConfigError
from trainer_core.families.base import Base
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, SampleReady, StepDone, ValidationDone, Warning
from trainer_core.training import experts

from .adversary import Adversary

SECTIONS: dict[str, Any] = {
    "train": {
        "steps": 5,
        "gradient_checkpointing": True,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "ema_decay": 0.9,
    },
    "adapter": {"type": "dora", "dropout": 0.1},
    "dataset": {"caption_dropout": 0.2},
    "regularization": {
        "output_preservation": True,
        "output_preservation_class": "thing",
        "contrastive_guidance": True,
    },
    "validation": {"every": 3, "share": 0.5, "draws": 1},
    "sample": {"prompts": ("a [trigger]",), "every": 3, "width": 64, "height": 64},
}

MEMORY = {"plan": "manual", "layer_offloading": 0.8}


@pytest.fixture
def outcome(
    job_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Trains, with streamed blocks if there is a copier; gives what was seen and what was saved."""

    def run(copier: Adversary | None) -> dict[str, Any]:
        monkeypatch.setattr(experts, "copier_for", lambda _device: copier)
        memory = MEMORY if copier else {}
        found: dict[str, Any] = {"losses": [], "validation": [], "samples": [], "warnings": []}

        def listen(event: Event) -> None:
            match event:
                case StepDone():
                    found["losses"].append(event.loss)
                case ValidationDone():
                    found["validation"].append(event.loss)
                case SampleReady():
                    found["samples"].append(Path(event.path).read_bytes())
                case Warning():
                    found["warnings"].append(event.message)

        training = TrainingJob.new(tmp_path / ("streamed" if copier else "whole"), job_of(memory=memory, **SECTIONS))
        assert training.run_here(listen) == "finished"
        checkpoint = training.run.latest()
        assert checkpoint is not None
        return {**found, "lora": checkpoint.lora.read_bytes()}

    return run


def test_a_run_is_the_same(outcome: Callable[..., dict[str, Any]]) -> None:
    from safetensors.torch import load

    whole = outcome(None)
    assert len(whole["losses"]) == 5
    assert whole["validation"]
    assert whole["samples"]
    copier = Adversary(3)
    streamed = outcome(copier)
    assert copier.copies > 5 * 4
    for name in ("losses", "validation", "samples", "warnings"):
        assert streamed[name] == whole[name]
    ours, theirs = load(streamed["lora"]), load(whole["lora"])
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


def test_on_the_cpu_there_is_nothing_to_stream(job_of: Callable[..., JobConfig], base: Base) -> None:
    told: list[Event] = []
    made = experts.Experts(job_of(memory=MEMORY, train={"gradient_checkpointing": True}), base, told.append)
    assert made.active.streamed is None
    assert ["memory.layer_offloading" in event.message for event in told if isinstance(event, Warning)] == [True]


def test_streaming_asks_for_gradient_checkpointing(job_of: Callable[..., JobConfig], base: Base) -> None:
    with pytest.raises(ConfigError, match=r"memory\.layer_offloading.*train\.gradient_checkpointing"):
        experts.Experts(job_of(memory=MEMORY), base, lambda _: None)
