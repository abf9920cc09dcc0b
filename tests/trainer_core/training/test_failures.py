"""What a run survives: losses that are not finite, memory that is not enough, files that vanish, sudden ends."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainer_core.config import JobConfig
from trainer_core.errors import DatasetError, TrainingError
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, Skipped, StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.training import loop
from trainer_core.training.ema import EMA
from trainer_core.training.loop import Trainer
from trainer_core.training.update import NotFinite

from .terms import spoil

Jobs = Callable[..., JobConfig]
Trainers = Callable[..., Trainer]
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


def new(job: JobConfig, root: Path) -> TrainingJob:
    return TrainingJob(RunFolder.create(root / "runs", job), job)


def same(one: Trainer, other: Trainer, tolerance: float = 0.0) -> bool:
    ours, theirs = one.experts.active.adapter.state_dict(), other.experts.active.adapter.state_dict()
    return all((ours[name] - theirs[name]).norm() <= tolerance * (theirs[name].norm() + 1e-6) for name in theirs)


# --- not finite ------------------------------------------------------------------------------------------------------


def test_a_spoiled_batch_is_passed_over(job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is then that of all other batches: made here by hand, batch by batch."""
    trainer, by_hand = trainer_of(job_of()), trainer_of(job_of())
    for step, draw in enumerate((0, 2, 4)):
        by_hand.experts.active.updater.update(by_hand.batches.get(draw), step)
    spoil(monkeypatch, 1, 3)
    for _ in range(3):
        trainer.update()
        trainer.progress.step += 1
    assert (trainer.step, trainer.progress.skipped) == (3, 2)
    assert same(trainer, by_hand)


def test_what_is_told_of_a_spoiled_batch(job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1)
    training, events = new(job_of(train={"steps": 3}), tmp_path), []
    assert training.run_here(events.append) == "finished"
    (told,) = [event for event in events if isinstance(event, Skipped)]
    assert (told.step, told.what, len(told.images)) == (2, "loss", 1)
    assert [line["step"] for line in training.run.metrics()] == [1, 2, 2, 3]
    assert training.run.metrics()[1] == {"step": 2, "skipped": list(told.images), "not_finite": "loss"}
    assert len(training.run.losses()) == 3
    log = (training.run.path / "log.txt").read_text()
    assert f"step 2: a batch is passed over, its loss is not finite ({told.images[0]})" in log


def test_passed_over_batches_survive_a_stop(job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, 2, 5)
    job = job_of(train={"steps": 6, "deterministic": True}, save={"every": 2})
    whole, broken = new(job, tmp_path), new(job, tmp_path)
    assert whole.run_here(lambda _: None) == "finished"
    for step in (2, 4):

        def listen(event: Event, at: int = step, training: TrainingJob = broken) -> None:
            if isinstance(event, StepDone) and event.step == at:
                training.stop()

        assert broken.run_here(listen) == "stopped"
        broken = TrainingJob(broken.run)
    assert broken.run_here(lambda _: None) == "finished"
    finals = [training.run.latest() for training in (whole, broken)]
    assert finals[0] is not None
    assert finals[1] is not None
    assert finals[0].lora.read_bytes() == finals[1].lora.read_bytes()
    keys = ("step", "loss", "skipped")
    lines = [[{k: line.get(k) for k in keys} for line in training.run.metrics()] for training in (whole, broken)]
    assert lines[0] == lines[1]


def test_too_many_in_a_row_stop_the_run_with_the_last_checkpoint(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, *range(3, 100))
    training, events = new(job_of(train={"steps": 9, "skip_limit": 2}, save={"every": 2}), tmp_path), []
    with pytest.raises(NotFinite, match=r"step 4: the loss is not finite \(images: \w+\.png\).*learning_rate"):
        training.run_here(events.append)
    assert len([event for event in events if isinstance(event, Skipped)]) == 2
    assert [checkpoint.step for checkpoint in training.run.checkpoints()] == [2]
    assert training.run.status()["state"] == "failed"
    monkeypatch.undo()
    assert TrainingJob(training.run).run_here(lambda _: None) == "finished"


def test_the_count_begins_anew_after_a_good_batch(
    job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 0, 2, 4)
    trainer = trainer_of(job_of(train={"skip_limit": 1}))
    for _ in range(3):
        trainer.update()
        trainer.progress.step += 1
    assert trainer.progress.skipped == 3


def test_weights_that_are_not_finite_are_never_saved(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = new(job_of(train={"steps": 4, "skip_limit": 0}, save={"every": 1}), tmp_path)
    original = loop.Trainer.report

    def report(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == 3:
            self.experts.active.adapter.parameters()[0].data.fill_(math.inf)

    monkeypatch.setattr(loop.Trainer, "report", report)
    with pytest.raises(TrainingError, match="step 3: the LoRA's weights are not finite"):
        training.run_here(lambda _: None)
    assert [checkpoint.step for checkpoint in training.run.checkpoints()] == [1, 2]


@pytest.mark.parametrize("moment", ["in the optimizer", "in the moving average"])
def test_half_an_update_is_not_saved(
    moment: str, job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, optimizer and average that do not belong together are worth less than the checkpoint before them."""
    original, averaged = EMA.update, []

    def update(self: EMA, *fine: Any) -> None:
        averaged.append(self)
        if len(averaged) == 4 and moment == "in the moving average":
            raise RuntimeError("CUDA error: unspecified launch failure")
        original(self, *fine)

    def step(*_: Any) -> None:
        if len(averaged) == 3 and moment == "in the optimizer":
            raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(EMA, "update", update)
    job = job_of(train={"steps": 6, "ema_decay": 0.9, "deterministic": True}, save={"every": 2})
    broken, whole = new(job, tmp_path), new(job, tmp_path)
    hook = register_optimizer_step_post_hook(step)
    try:
        with pytest.raises(RuntimeError, match="unspecified launch failure"):
            broken.run_here(lambda _: None)
    finally:
        hook.remove()
    assert [checkpoint.step for checkpoint in broken.run.checkpoints()] == [2]
    monkeypatch.undo()
    for training in (TrainingJob(broken.run), whole):
        assert training.run_here(lambda _: None) == "finished"
    finals = [training.run.latest() for training in (broken, whole)]
    assert finals[0] is not None
    assert finals[1] is not None
    assert finals[0].lora.read_bytes() == finals[1].lora.read_bytes()


# --- files and sudden ends -------------------------------------------------------------------------------------------


def test_a_picture_that_vanishes_while_training_does_no_harm(job_of: Jobs, pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "going"))
    training = new(job_of(dataset={"folder": str(folder)}, train={"steps": 8}), tmp_path)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            shutil.rmtree(folder)

    assert training.run_here(listen) == "finished"


@pytest.mark.parametrize("there", [True, False])
def test_a_cache_that_is_cleared_while_training(
    there: bool, job_of: Jobs, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are made again; where the picture is gone too, the run stops, and what was trained is saved."""
    monkeypatch.setattr("trainer_core.data.prepare._MEMORY_LIMIT", 0)
    folder = Path(shutil.copytree(pictures, tmp_path / "going"))
    training = new(job_of(dataset={"folder": str(folder)}, train={"steps": 6, "deterministic": True}), tmp_path)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            shutil.rmtree(tmp_path / "runs" / ".cache")
            if not there:
                for path in folder.glob("*.png"):
                    path.rename(path.with_suffix(".away"))

    if there:
        assert training.run_here(listen) == "finished"
    else:
        with pytest.raises(DatasetError, match=r"\.png"):
            training.run_here(listen)
        saved = training.run.latest()
        assert saved is not None
        assert saved.step >= 2
        for path in folder.glob("*.away"):
            path.rename(path.with_suffix(".png"))
        assert TrainingJob(training.run).run_here(lambda _: None) == "finished"
    undisturbed = new(training.job, tmp_path)
    assert undisturbed.run_here(lambda _: None) == "finished"
    finals = [one.run.latest() for one in (training, undisturbed)]
    assert finals[0] is not None
    assert finals[1] is not None
    assert finals[0].lora.read_bytes() == finals[1].lora.read_bytes()


def test_interrupted_at_once_is_stopped_and_unsaved(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(train={"steps": 9}, save={"every": 2}), tmp_path)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise KeyboardInterrupt

    assert training.run_here(listen) == "stopped"
    assert training.error is None
    status = training.run.status()
    assert (status["state"], status["step"]) == ("stopped", 4)
    assert TrainingJob(training.run).run_here(lambda _: None) == "finished"


def test_a_job_that_is_refused_leaves_the_run_as_it_was(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(), tmp_path)
    assert training.run_here(lambda _: None) == "finished"
    kept = (training.run.path / "job.yaml").read_bytes()
    other = TrainingJob(training.run, training.job.but(adapter={"rank": 3}))
    with pytest.raises(Exception, match=r"adapter\.rank"):
        other.run_here(lambda _: None)
    assert training.run.status()["state"] == "finished"
    assert (training.run.path / "job.yaml").read_bytes() == kept


def test_a_job_that_is_accepted_becomes_the_runs_own(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(), tmp_path)
    assert training.run_here(lambda _: None) == "finished"
    longer = training.job.but(train={**training.job.train.model_dump(), "steps": 5})
    assert TrainingJob(training.run, longer).run_here(lambda _: None) == "finished"
    assert training.run.job().train.steps == 5
    assert [line["step"] for line in training.run.metrics()] == [1, 2, 3, 4, 5]
