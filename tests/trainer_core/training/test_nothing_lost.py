"""Nothing is lost: interrupted at random steps, three times in a row, the run ends as if it had never been interrupted.

Compared are files and lines that two runs leave behind; nothing of the code under test says when they are equal.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.config import JobConfig
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StateChanged, StepDone
from trainer_core.runs.run_folder import RunFolder

from .terms import spoil

Jobs = Callable[..., JobConfig]

_NOT_REPEATABLE = {"seconds_per_step", "peak_memory"}


@pytest.fixture
def all_of(job_of: Jobs, half_triggered: Path, others: Path) -> Callable[..., JobConfig]:
    """The issue's run: two weighted sets, caption dropout, warm-up, moving average, accumulation 3; and whatever more.

    `aside`: more data sets, such as one to validate on; `regularization` and `validation` as in a job.
    """

    def make(
        aside: tuple[dict[str, Any], ...] = (),
        regularization: dict[str, Any] | None = None,
        validation: dict[str, Any] | None = None,
        **sections: Any,
    ) -> JobConfig:
        train = {
            "steps": 8,
            "gradient_accumulation": 3,
            "ema_decay": 0.9,
            "lr_scheduler": "cosine",
            "warmup_steps": 3,
            "deterministic": True,
            **sections.pop("train", {}),
        }
        job = job_of(
            datasets=[
                {"weight": 2.0, "caption_dropout": 0.4, "flip_x": True},
                {"folder": str(half_triggered), "weight": 0.7, "caption_dropout": 0.2},
                *aside,
            ],
            train=train,
            **{"save": {"every": 3}, **sections},
        )
        held_out = {"folder": str(others), "role": "validation", "trigger": None}
        if validation:
            job = job.but(datasets=(*job.datasets, job.datasets[0].but(**held_out, weight=1.0, caption_dropout=0.0)))
        return job.but(regularization=regularization or {}, validation=validation or {})

    return make


def go_on(run: RunFolder, at: int | None = None) -> str:
    """Goes on as a new process would, which knows nothing but the folder; asks for a stop once step `at` is done."""
    training = TrainingJob(RunFolder.open(run.path))

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == at:
            training.stop()

    return training.run_here(listen)


def final(run: RunFolder) -> dict[str, bytes]:
    """What the run ends with, by name: both files of its last checkpoint, and all its previews."""
    latest = run.latest()
    assert latest is not None
    assert latest.step == run.job().train.steps
    previews = {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.glob("samples/*/*.png")}
    return {"lora": latest.lora.read_bytes(), "state": latest.state.read_bytes(), **previews}


def lines(run: RunFolder) -> list[dict[str, Any]]:
    """metrics.jsonl but for times and memory."""
    return [{key: value for key, value in line.items() if key not in _NOT_REPEATABLE} for line in run.metrics()]


def assert_the_same(broken: RunFolder, straight: RunFolder) -> None:
    ours, theirs = final(broken), final(straight)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert lines(broken) == lines(straight)


def stopped_thrice(run: RunFolder, seed: int) -> None:
    """Stops after three random steps, and goes on each time."""
    for step in sorted(random.Random(seed).sample(range(1, run.job().train.steps), 3)):
        assert go_on(run, step) == "stopped"
        latest = run.latest()
        assert latest is not None
        assert latest.step == step
    assert go_on(run) == "finished"


def paused_thrice(run: RunFolder, seed: int) -> None:
    """Pauses after three random steps; everything is freed, and comes back."""
    training = TrainingJob(RunFolder.open(run.path))
    steps, pauses = random.Random(seed).sample(range(1, run.job().train.steps), 3), []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step in steps:
            training.pause()
        elif isinstance(event, StateChanged) and event.state == "paused":
            pauses.append(event.step)
            training.go_on()

    assert training.run_here(listen) == "finished"
    assert pauses == sorted(steps)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder, whose cache serves all tests of this module."""
    return tmp_path_factory.mktemp("runs")


def compared(
    job: JobConfig, root: Path, seed: int, interrupt: Callable[[RunFolder, int], None] = stopped_thrice
) -> RunFolder:
    """Runs the job straight through and interrupted; gives the straight run."""
    straight, broken = RunFolder.create(root, job), RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    interrupt(broken, seed)
    assert_the_same(broken, straight)
    return straight


# --- the issue's own sentence ----------------------------------------------------------------------------------------


def test_three_interruptions_change_no_byte_and_no_line(all_of: Callable[..., JobConfig], root: Path) -> None:
    job = all_of()
    straight = RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    for seed in (1, 2):
        broken = RunFolder.create(root, job)
        stopped_thrice(broken, seed)
        assert_the_same(broken, straight)
    # what was compared is a run that learned, whose average is not its weights, and whose rate rose and fell
    rates = [line["lr"] for line in lines(straight)]
    assert rates == pytest.approx(sorted(rates[:4]) + sorted(rates[4:], reverse=True))
    assert len({line["loss"] for line in lines(straight)}) == 8


# --- with everything else --------------------------------------------------------------------------------------------

WITH: dict[str, dict[str, Any]] = {
    "preservation, validation, previews": {
        "regularization": {"output_preservation": True, "output_preservation_class": "shape"},
        "validation": {"every": 3, "draws": 1},
        "sample": {"prompts": ("a [trigger]", "a house"), "every": 4, "before_training": True, "steps": 1},
    },
    "regularization set, LoRA dropout, gradient checkpointing": {
        "aside": ({"role": "regularization", "trigger": None, "caption_dropout": 0.3},),
        "adapter": {"dropout": 0.3},
        "train": {"gradient_checkpointing": True, "batch_size": 2},
    },
    "prodigy": {"train": {"optimizer": "prodigy", "learning_rate": 1.0}},
    "adafactor": {"train": {"optimizer": "adafactor"}},
    "lion, no warm-up of the average": {"train": {"optimizer": "lion", "ema_warmup": False, "learning_rate": 1e-3}},
    "a line every 3 steps": {"train": {"log_every": 3}},
    "stages": {"train": {"stage_boundaries": (0.5,), "stage_switch_every": 2, "lr_scheduler": "polynomial"}},
    "one checkpoint, half precision": {"save": {"every": 1, "keep": 1, "dtype": "bfloat16", "weights": "raw"}},
}


@pytest.mark.parametrize("what", WITH)
def test_with(what: str, all_of: Callable[..., JobConfig], root: Path) -> None:
    sections = {name: dict(value) if isinstance(value, dict) else value for name, value in WITH[what].items()}
    train = {"steps": 6, **sections.pop("train", {})}
    straight = compared(all_of(train=train, **sections), root, seed=len(what))
    if "previews" in what:
        assert len(final(straight)) == 2 + 3 * 2  # at steps 0, 4 and 6
        assert [line["step"] for line in lines(straight) if "validation_loss" in line] == [0, 3, 6]
    if what == "a line every 3 steps":
        assert [line["step"] for line in lines(straight)] == [3, 6]


def test_paused_and_continued(all_of: Callable[..., JobConfig], root: Path) -> None:
    compared(all_of(train={"steps": 5}), root, seed=5, interrupt=paused_thrice)


def test_with_batches_that_are_passed_over(
    all_of: Callable[..., JobConfig], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws 2, 3 and 6 give nan: steps 3 and 5 take another batch, before and after interruptions."""
    spoil(monkeypatch, 2, 3, 6)
    straight = compared(all_of(train={"steps": 6}), root, seed=3)
    assert [line["step"] for line in lines(straight)] == [1, 2, 3, 3, 3, 4, 5, 5, 6]
    assert sum("skipped" in line for line in lines(straight)) == 3
