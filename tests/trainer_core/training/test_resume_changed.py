"""A run that goes on with other settings: what may change changes no weight, what may not leaves all as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from trainer_core.config import JobConfig
from trainer_core.errors import ResumeRefused
from trainer_core.families import sources
from trainer_core.training.events import Event, StepDone, Warning
from trainer_core.training.job import TrainingJob
from trainer_core.training.resume_rules import DATA
from trainer_core.training.run_folder import RunFolder

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]


@pytest.fixture
def stopped(job_of: Jobs, tmp_path: Path, pictures: Path) -> RunFolder:
    """A run of 4 steps that stands at step 2, on a copy of the pictures."""
    folder = shutil.copytree(pictures, tmp_path / "mine")
    dataset = {"folder": str(folder), "flip_x": True, "caption_dropout": 0.3}
    job = job_of(dataset=dataset, adapter={"dropout": 0.2}, train={"steps": 4, "batch_size": 2})
    run = RunFolder.create(tmp_path / "runs", job)
    training = TrainingJob(run)
    assert training.run_here(lambda event: _stop_at(2, training, event)) == "stopped"
    return run


def _stop_at(step: int, training: TrainingJob, event: Event) -> None:
    if isinstance(event, StepDone) and event.step == step:
        training.stop()


def adapter(run: RunFolder) -> dict[str, torch.Tensor]:
    latest = run.latest()
    assert latest is not None
    return {name: value for name, value in load(latest.state.read_bytes()).items() if name.startswith("adapter.")}


def test_what_may_change_changes_no_weight(stopped: RunFolder, train: Train, tmp_path: Path) -> None:
    """All at once: the run that goes on so ends with the weights of one that never changed."""
    job = stopped.job()
    straight = adapter(train(job, root=tmp_path / "straight").run)
    moved, base = tmp_path / "moved", tmp_path / "base"
    Path(job.datasets[0].folder).rename(moved)
    for caption in moved.glob("*.txt"):
        caption.rename(caption.with_suffix(".caption"))
    shutil.copytree(sources.EMBEDDED, base)
    changed = JobConfig.model_validate(
        {
            **job.model_dump(mode="json"),
            "name": "other",
            "model": {**job.model.model_dump(), "source": str(base)},
            "adapter": {**job.adapter.model_dump(), "warm_start": "gone.safetensors"},
            "datasets": [job.datasets[0].but(folder=str(moved), caption_extension="caption").model_dump(mode="json")],
            "train": {
                **job.train.model_dump(mode="json"),
                "gradient_checkpointing": True,
                "skip_limit": 1,
                "log_every": 2,
            },
            "save": {"every": 1, "keep": 2, "dtype": "bfloat16"},
            "sample": {"prompts": ["a green [trigger]"], "every": 1, "steps": 1},
            "cache": {"limit_gb": 1},
        }
    )
    warnings: list[str] = []
    training = TrainingJob(stopped, changed)
    training.run_here(lambda event: warnings.append(event.message) if isinstance(event, Warning) else None)
    assert training.outcome == "finished"
    assert not any("from step" in message for message in warnings)
    ended = adapter(stopped)
    assert ended.keys() == straight.keys()
    assert all(torch.equal(value, straight[name]) for name, value in ended.items())


def test_a_refused_change_leaves_the_run_as_it_was(stopped: RunFolder) -> None:
    before = adapter(stopped)
    job = stopped.job()
    with pytest.raises(ResumeRefused, match=r"train\.batch_size: was 2, is 4"):
        TrainingJob(stopped, job.but(train={**job.train.model_dump(mode="json"), "batch_size": 4})).run_here(print)
    after = adapter(stopped)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert TrainingJob(RunFolder.open(stopped.path)).run_here(lambda _: None) == "finished"


def test_a_changed_caption_is_refused_and_can_be_accepted(stopped: RunFolder) -> None:
    next(Path(stopped.job().datasets[0].folder).glob("*.txt")).write_text("a purple [trigger]", encoding="utf-8")
    with pytest.raises(ResumeRefused, match=r"data: .*captions in .*mine are not the same"):
        TrainingJob(stopped).run_here(lambda _: None)
    events: list[Event] = []
    assert TrainingJob(stopped, accept={DATA}).run_here(events.append) == "finished"
    assert any("from step 3 on" in event.message for event in events if isinstance(event, Warning))
    latest = stopped.latest()
    assert latest is not None
    header = latest.lora.read_bytes()[:20_000]
    assert b"no: settings, data or environment changed after step 2" in header
    assert b"mine are" not in header
