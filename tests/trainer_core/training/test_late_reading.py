"""An update is begun before it is known what became of the last one: nothing waits, and nothing else is different."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_core.config import JobConfig
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, Skipped, StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.training.experts import Experts
from trainer_core.training.update import NotFinite, Updater

from .terms import spoil

Jobs = Callable[..., JobConfig]
Heard = list[tuple[Any, ...]]


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TrainingJob, Heard]]:
    """Runs a job to its end, with updates that are begun and read late, or each known at once."""

    def run(job: JobConfig, late: bool, listen: Callable[[TrainingJob, Event], None] = lambda *_: None) -> Any:
        monkeypatch.setattr(Experts, "read_late", lambda _: late)
        training, heard = TrainingJob(RunFolder.create(tmp_path / "runs", job), job), []

        def hear(event: Event) -> None:
            listen(training, event)
            if isinstance(event, StepDone):
                heard.append((event.step, event.loss, event.lr, dict(event.parts)))
            elif isinstance(event, Skipped):
                heard.append((event.step, event.what, event.images))

        while training.run_here(hear) != "finished":
            training = TrainingJob(training.run)
        return training, heard

    return run


def what_is_left(training: TrainingJob) -> dict[str, Any]:
    """All checkpoints and lines of a run."""
    timed = {"seconds_per_step", "peak_memory"}
    files = {
        str(path.relative_to(training.run.path)): path.read_bytes()
        for path in training.run.path.glob("checkpoints/*/*.safetensors")
    }
    return {**files, "lines": [{k: v for k, v in line.items() if k not in timed} for line in training.run.metrics()]}


def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the updates that are begun without waiting."""
    original, numbers = Updater.begin, list[int]()
    monkeypatch.setattr(
        Updater, "begin", lambda self, given, step: (numbers.append(step), original(self, given, step))[1]
    )
    return numbers


SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"ema_decay": 0.9, "lr_scheduler": "linear", "warmup_steps": 3},
    "fused": {"optimizer_options": {"fused": True}, "ema_decay": 0.9},
    "adafactor": {"optimizer": "adafactor"},
}


@pytest.mark.parametrize(
    ("name", "bad"),
    [*(("adamw", bad) for bad in ((), (0,), (2, 3), (4,), (6,))), ("fused", (2, 3)), ("adafactor", (2, 3))],
)
def test_a_run_is_the_same_bit_for_bit(
    name: str, bad: tuple[int, ...], job_of: Jobs, run_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with batches that are passed over, before, at and after a step at which something is due."""
    numbers = begun(monkeypatch)
    spoil(monkeypatch, *bad)
    job = job_of(train={"steps": 7, **SETTINGS[name]}, save={"every": 4, "keep": 9})
    (at_once, expected), (late, heard) = run_of(job, False), run_of(job, True)
    assert heard == expected
    assert what_is_left(late) == what_is_left(at_once)
    assert len(numbers) >= 3


def test_a_gradient_that_is_not_finite_reaches_nothing(job_of: Jobs, run_of: Callable[..., Any]) -> None:
    """The loss is; the norm of the gradient is not, in step 3."""
    calls: list[int] = []

    def overflow(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * (math.inf if len(calls) == 3 else 1)

    found = []
    for late in (False, True):
        calls.clear()

        def listen(training: TrainingJob, event: Event) -> None:
            return

        original = Updater.__init__

        def hooked(self: Updater, *given: Any, original: Any = original) -> None:
            original(self, *given)
            self.adapter.parameters()[1].register_hook(overflow)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Updater, "__init__", hooked)
            training, heard = run_of(job_of(train={"steps": 5}), late, listen)
        found.append((heard, what_is_left(training)))
    assert found[0] == found[1]
    assert found[0][0][2][:2] == (3, "gradient")


@pytest.mark.parametrize("request_of", ["stop", "pause", "save_now"])
def test_what_is_asked_is_done_at_a_step_that_is_known(
    request_of: str, job_of: Jobs, run_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked when step 3 is told of, step 4 is under way: it counts, is told of and saved."""
    spoil(monkeypatch, 1, 5)
    job = job_of(train={"steps": 8, "ema_decay": 0.9, "deterministic": True}, save={"keep": 9})

    def listen(training: TrainingJob, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            training.pause(leave=True) if request_of == "pause" else getattr(training, request_of)()

    (plain, expected), (asked, heard) = run_of(job, False), run_of(job, True, listen)
    assert heard == expected
    left, whole = what_is_left(asked), what_is_left(plain)
    assert left["lines"] == whole["lines"]
    assert all(left[name] == value for name, value in whole.items())
    assert [one.step for one in asked.run.checkpoints()] == [4, 8]


def test_a_failure_loses_no_step(
    job_of: Jobs, run_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass of step 4 fails while step 3 is not told of."""
    job = job_of(train={"steps": 5})
    whole, _ = run_of(job, False)
    monkeypatch.setattr(Experts, "read_late", lambda _: True)
    original = Updater._gradients

    def fail(self: Updater, batches: Any, scale: float) -> Any:
        if batches[0].number == 3:
            raise OSError("the cable was pulled")
        return original(self, batches, scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updater, "_gradients", fail)
        training = TrainingJob(RunFolder.create(tmp_path / "failing", job), job)
        with pytest.raises(OSError, match="cable"):
            training.run_here(lambda _: None)
    assert [line["step"] for line in training.run.metrics()] == [1, 2, 3]
    assert [one.step for one in training.run.checkpoints()] == [3]
    TrainingJob(training.run).run_here(lambda _: None)
    assert what_is_left(training)["lines"] == what_is_left(whole)["lines"]


def test_too_many_in_a_row_stop_the_run(job_of: Jobs, run_of: Callable[..., Any], monkeypatch: Any) -> None:
    spoil(monkeypatch, *range(3, 100))
    with pytest.raises(NotFinite, match=r"step 4: the loss is not finite"):
        run_of(job_of(train={"steps": 9, "skip_limit": 2}, save={"every": 2}), True)


# --- waiting ---------------------------------------------------------------------------------------------------------


class NothingIsRead(TorchDispatchMode):
    """Refuses what makes the host wait for a number of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert name not in {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "regularization",
    [
        {},
        {"output_preservation": True, "blank_preservation": True, "output_preservation_class": "dog"},
        {"contrastive_guidance": True, "differential_guidance": True},
    ],
)
def test_nothing_is_read_inside_a_step(
    regularization: dict[str, Any], made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ema_decay": 0.9, "optimizer_options": {"fused": True}, "gradient_accumulation": 2}
    trainer = made(
        regularization,
        train={**settings, "min_snr_gamma": 5.0, "timestep_type": "weighted"},
        adapter={"dropout": 0.1},
    )
    updater = trainer.experts.active.updater
    updater.begin(trainer.batches.get(0), 0)  # in which it is found what gradients reach
    batches = trainer.batches.get(1)
    monkeypatch.setattr(Tensor, "tolist", None)
    monkeypatch.setattr(Tensor, "numpy", None)
    with NothingIsRead():
        update = updater.begin(batches, 1)
    monkeypatch.undo()
    assert math.isfinite(update.made().loss)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingIsRead():
        float(torch.ones(()))
