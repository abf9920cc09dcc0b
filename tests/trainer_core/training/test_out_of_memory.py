"""Memory that is not enough: batches in pieces, what is left out, and advice when a single picture does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_core.config import JobConfig
from trainer_core.errors import TrainingError
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StepDone, Warning
from trainer_core.runs.run_folder import RunFolder
from trainer_core.training import loop
from trainer_core.training.batch_source import TrainBatch
from trainer_core.training.loop import Trainer
from trainer_core.training.previews import Previews
from trainer_core.training.step import Term

from .terms import on_terms

Jobs = Callable[..., JobConfig]
Trainers = Callable[..., Trainer]
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


def new(job: JobConfig, root: Path) -> TrainingJob:
    return TrainingJob(RunFolder.create(root / "runs", job), job)


def small_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Passes of more images do not fit."""

    def change(batch: TrainBatch, term: Term) -> Term:
        if len(batch) > images:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return term

    on_terms(monkeypatch, change)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_run_in_pieces(
    images: int, job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is the same step, but for rounding; also where the adapter drops some of its inputs."""
    job = job_of(
        train={"batch_size": 4, "learning_rate": 1e-4}, dataset={"caption_dropout": 0.5}, adapter={"dropout": 0.5}
    )
    whole, pieces = trainer_of(job), trainer_of(job)
    told: list[Event] = []
    pieces.experts.active.updater._emit = told.append
    expected = [whole.update(), setattr(whole.progress, "step", 1), whole.update()][::2]
    small_memory(monkeypatch, images)
    made = [pieces.update(), setattr(pieces.progress, "step", 1), pieces.update()][::2]
    for one, other in zip(made, expected, strict=True):
        assert (one.loss, one.norm) == pytest.approx((other.loss, other.norm), rel=1e-4)  # type: ignore[union-attr]
    assert pieces.experts.active.updater.pieces == {1: 4, 2: 2, 3: 2}[images]
    assert len(told) == {1: 2, 2: 1, 3: 1}[images]
    assert all(isinstance(event, Warning) and OUT_OF_MEMORY in event.message for event in told)


def test_pieces_survive_a_stop(job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of other parts round differently: a run that goes on cuts its batches as before, with memory enough."""
    job = job_of(train={"batch_size": 4, "steps": 4, "deterministic": True})
    whole, stopped = new(job, tmp_path), new(job, tmp_path)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            stopped.stop()

    with monkeypatch.context() as patch:
        small_memory(patch, 2)
        assert whole.run_here(lambda _: None) == "finished"
        assert stopped.run_here(listen) == "stopped"
    assert TrainingJob(stopped.run).run_here(lambda _: None) == "finished"
    finals = [training.run.latest() for training in (whole, stopped)]
    assert finals[0] is not None
    assert finals[1] is not None
    assert finals[0].lora.read_bytes() == finals[1].lora.read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(OUT_OF_MEMORY),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        MemoryError("no more"),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
def test_a_single_image_that_does_not_fit_fails_with_advice(
    error: Exception, job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(batch: TrainBatch, term: Term) -> Term:
        if batch.number == 2:
            raise error
        return term

    on_terms(monkeypatch, change)
    training = new(job_of(train={"steps": 4}, adapter={"rank": 16}, model={"dtype": "float32"}), tmp_path)
    with pytest.raises(TrainingError, match="memory is not enough") as caught:
        training.run_here(lambda _: None)
    advice = str(caught.value)
    order = [advice.index(word) for word in ("gradient_checkpointing", "adapter.rank (16)", "model.dtype")]
    assert order == sorted(order)
    assert "batch_size" not in advice, "it is 1 already"
    saved = training.run.latest()
    assert saved is not None
    assert saved.step == 2, "what was trained before is saved first"
    monkeypatch.undo()
    assert TrainingJob(training.run).run_here(lambda _: None) == "finished"


def test_other_errors_are_not_taken_for_want_of_memory(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(batch: TrainBatch, term: Term) -> Term:
        if batch.number == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return term

    on_terms(monkeypatch, change)
    training = new(job_of(train={"steps": 4, "batch_size": 4}), tmp_path)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        training.run_here(lambda _: None)
    saved = training.run.latest()
    assert saved is not None
    assert saved.step == 2


@pytest.mark.parametrize("what", ["previews", "validation"])
def test_previews_and_measurements_that_do_not_fit_are_left_out(
    what: str, job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(*((Previews, "draw") if what == "previews" else (loop, "validation_loss")), fails)
    sample = {"prompts": ("a",), "every": 2, "before_training": True}
    job = job_of(train={"steps": 3}, sample=sample).but(validation={"every": 2, "share": 0.25})
    training, events = new(job, tmp_path), []
    assert training.run_here(events.append) == "finished"
    told = [event.message for event in events if isinstance(event, Warning)]
    assert [message for message in told if f"not enough for {what} at step" in message] == told
    assert len(told) == 3, "before the first step, at step 2, and at the end"
    assert bool(training.run.sample_paths()) == (what == "validation")


def test_gradients_of_a_pass_that_ran_out_of_memory_do_not_count(
    job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first micro-batch has gone back already when the second one does not fit: it goes back again, not twice."""
    job = job_of(train={"batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-4})
    whole, pieces = trainer_of(job), trainer_of(job)
    expected = whole.update()
    passes = [0]

    def change(_batch: TrainBatch, term: Term) -> Term:
        passes[0] += 1
        if passes[0] == 2:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return term

    on_terms(monkeypatch, change)
    made = pieces.update()
    assert passes[0] == 2 + 4
    assert (made.loss, made.norm) == pytest.approx((expected.loss, expected.norm), rel=1e-4)


def test_every_micro_batch_has_dropout_of_its_own(
    job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(job_of(train={"batch_size": 2, "gradient_accumulation": 2}, adapter={"dropout": 0.5}))
    seeds: list[tuple[int | str, ...]] = []
    original = trainer.experts.active.adapter.seed_dropout

    def seed(*place: int | str, **part: int) -> None:
        seeds.append(place)
        original(*place, **part)

    monkeypatch.setattr(trainer.experts.active.adapter, "seed_dropout", seed)
    trainer.update()
    places = [place for place in seeds if place]
    assert len(places) == len(set(places)) == 2
