"""Settings that are most likely a mistake are told, and what is fine is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainer_core.config import JobConfig
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, Warning
from trainer_core.training.advice import advice

BLANK = {"blank_preservation": True}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({}, None),
        ({"train": {"optimizer": "prodigy", "learning_rate": 1.0}}, None),
        ({"train": {"optimizer": "prodigy", "learning_rate": 1e-4}}, "Set it to 1"),
        ({"regularization": BLANK, "dataset": {"caption_dropout": 0.1}}, None),  # to the trigger
        ({"regularization": BLANK, "dataset": {"caption_dropout": 0.1, "dropped_caption": "blank"}}, "dropped_caption"),
        ({"regularization": BLANK, "dataset": {"caption_dropout": 0.1, "trigger": None}}, "dropped_caption"),
        ({"dataset": {"caption_dropout": 0.1, "dropped_caption": "blank"}}, None),
    ],
)
def test_what_is_told(job_of: Callable[..., JobConfig], sections: dict[str, Any], told: str | None) -> None:
    found = advice(job_of(**sections))
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_a_run_tells_it_and_goes_on(job_of: Callable[..., JobConfig], train: Callable[..., TrainingJob]) -> None:
    heard: list[Event] = []
    job = train(job_of(train={"steps": 1, "optimizer": "prodigy", "learning_rate": 1e-4}), heard.append)
    assert job.outcome == "finished"
    assert any(isinstance(event, Warning) and "prodigy" in event.message for event in heard)
    assert "prodigy" in (job.run.path / "log.txt").read_text(encoding="utf-8")
