"""Requests to a job: by its methods, and by files that any other process leaves in the run's folder."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from trainer_core.config import JobConfig
from trainer_core.errors import RunError, RunHeld
from trainer_core.families.flux1.model import Flux
from trainer_core.job import TrainingJob
from trainer_core.runs import requests as control
from trainer_core.runs.events import CheckpointSaved, Event, RequestDone, SampleReady, StateChanged, StepDone
from trainer_core.runs.requests import Requests, ask
from trainer_core.runs.run_folder import RunFolder

Jobs = Callable[..., JobConfig]


def new(job: JobConfig, root: Path) -> TrainingJob:
    return TrainingJob(RunFolder.create(root / "runs", job), job)


def until(training: TrainingJob, happened: Callable[[Event], bool]) -> list[Event]:
    """Events up to one of a kind; gives up after two minutes."""
    events: list[Event] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for event in training.events():
            events.append(event)
            if happened(event):
                return events
        if not training.alive:
            raise AssertionError(f"it ended: {training.outcome}, {training.error}, {events + training.events()}")
        time.sleep(0.01)
    raise AssertionError(f"nothing came: {events}")


def state(name: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StateChanged) and event.state == name


def stepped(event: Event) -> bool:
    return isinstance(event, StepDone)


# --- requests by themselves ------------------------------------------------------------------------------------------


def test_a_request_stays_until_it_is_taken(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    assert not requests.asked("save")
    requests.ask("save")
    assert requests.asked("save")
    assert requests.asked("save")
    assert requests.take("save")
    assert not requests.take("save")


@pytest.mark.parametrize("word", control.REQUESTS)
def test_a_file_of_another_process_is_a_request_once(word: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import os; os.mkdir('requests'); open('requests/{word}', 'w').close()"],
        cwd=tmp_path,
        check=True,
    )
    requests = Requests(tmp_path)
    assert requests.take(word)
    assert list((tmp_path / "requests").iterdir()) == []
    assert not requests.take(word)


def test_ask_leaves_such_a_file(tmp_path: Path) -> None:
    ask(tmp_path, "pause")
    ask(tmp_path, "pause")
    assert [path.name for path in (tmp_path / "requests").iterdir()] == ["pause"]
    assert Requests(tmp_path).interrupts


@pytest.mark.parametrize("word", ["", "kill", "../run.json", "stop\n", "STOP"])
def test_only_known_words(word: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="stop, pause, continue, save, sample"):
        ask(tmp_path, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("first", "last"), [("pause", "continue"), ("continue", "pause")])
def test_the_later_of_pause_and_continue_counts(first: str, last: str, tmp_path: Path) -> None:
    for number, word in enumerate((first, last)):
        ask(tmp_path, word)
        os.utime(tmp_path / "requests" / word, (1000 + number, 1000 + number))
    requests = Requests(tmp_path)
    assert (requests.asked(first), requests.asked(last)) == (False, True)


def test_what_was_asked_of_an_earlier_process_is_forgotten(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(), tmp_path)
    ask(training.run.path, "stop")
    assert training.run_here(lambda _: None) == "finished"


def test_unknown_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "notes.txt").touch()
    assert not Requests(tmp_path).interrupts
    assert (tmp_path / "requests" / "notes.txt").exists()


# --- what a job does with them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["method", "file"])
def test_save_and_sample_now(way: str, job_of: Jobs, tmp_path: Path) -> None:
    """After the next step, once, without disturbing the training."""
    job = job_of(train={"steps": 6}, save={"every": 100}, sample={"prompts": ("a [trigger]",), "every": 100})
    training, events = new(job, tmp_path), []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            if way == "method":
                training.save_now()
                training.sample_now()
            else:
                ask(training.run.path, "save")
                ask(training.run.path, "sample")

    assert training.run_here(listen) == "finished"
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] in ([2, 6], [3, 6])
    assert [event.step for event in events if isinstance(event, SampleReady)] in ([2, 6], [3, 6])
    answers = [(event.request, event.step) for event in events if isinstance(event, RequestDone)]
    assert answers in ([("save", 2), ("sample", 2)], [("save", 3), ("sample", 3)])
    undisturbed = new(job, tmp_path)
    undisturbed.run_here(lambda _: None)
    finals = [run.latest() for run in (training.run, undisturbed.run)]
    assert finals[0] is not None
    assert finals[1] is not None
    assert finals[0].state.read_bytes() == finals[1].state.read_bytes()


def test_pause_frees_everything_and_goes_on_exactly(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[nn.Module]] = []
    original = Flux.load_denoiser

    def load(self: Flux, expert: str) -> nn.Module:
        denoiser = original(self, expert)
        loaded.append(weakref.ref(denoiser))
        return denoiser

    monkeypatch.setattr(Flux, "load_denoiser", load)
    job = job_of(train={"steps": 60, "deterministic": True, "warmup_steps": 20, "ema_decay": 0.9})
    training = new(job, tmp_path)
    training.start()
    until(training, stepped)
    training.pause()
    until(training, state("paused"))
    assert training.run.status()["state"] == "paused"
    gc.collect()
    assert [reference() for reference in loaded] == [None]
    at = training.run.latest()
    assert at is not None
    assert 1 <= at.step < 60
    other = new(job_of("other"), tmp_path)
    other.start()
    other.join(60)
    if other.alive:
        other.stop()
        training.stop()
    assert other.outcome == "finished", "the device is free for others"
    training.go_on()
    events = until(training, stepped)
    assert isinstance(events[-1], StepDone)
    assert events[-1].step == at.step + 1
    training.join(120)
    assert training.outcome == "finished"

    whole = new(job, tmp_path)
    assert whole.run_here(lambda _: None) == "finished"
    ours, theirs = training.run.latest(), whole.run.latest()
    assert ours is not None
    assert theirs is not None
    assert ours.lora.read_bytes() == theirs.lora.read_bytes()
    timeless = [strip(run.run.metrics()) for run in (training, whole)]
    assert timeless[0] == timeless[1]


def strip(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if key not in ("seconds_per_step", "peak_memory")} for line in lines]


def test_paused_and_left(job_of: Jobs, tmp_path: Path) -> None:
    """As the node does: the thread ends, and another job on the run goes on."""
    training = new(job_of(train={"steps": 40}), tmp_path)
    training.start()
    until(training, stepped)
    training.pause(leave=True)
    training.join(120)
    assert (training.outcome, training.error, training.run.status()["state"]) == ("paused", None, "paused")
    again = TrainingJob(RunFolder.open(training.run.path))
    assert again.run_here(lambda _: None) == "finished"
    assert [line["step"] for line in again.run.metrics()] == list(range(1, 41))


def test_stopped_while_paused(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(train={"steps": 100_000}), tmp_path)
    training.start()
    until(training, stepped)
    ask(training.run.path, "pause")
    until(training, state("paused"))
    ask(training.run.path, "stop")
    training.join(120)
    assert (training.outcome, training.run.status()["state"]) == ("stopped", "stopped")


def test_paused_before_it_starts(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(), tmp_path)
    training.pause()
    training.start()
    until(training, state("paused"))
    assert training.run.latest() is None
    training.go_on()
    training.join(120)
    assert training.outcome == "finished"


def test_two_runs_take_turns(job_of: Jobs, tmp_path: Path) -> None:
    first, second = (new(job_of(name, train={"steps": 100_000}), tmp_path) for name in ("first", "second"))
    first.start()
    until(first, stepped)
    second.start()
    until(second, state("queued"))
    time.sleep(0.5)
    assert not [event for event in second.events() if stepped(event)]
    first.stop()
    until(second, stepped)
    second.stop()
    for training in (first, second):
        training.join(120)
        assert training.outcome == "stopped"
    log = (second.run.path / "log.txt").read_text()
    assert "waiting for the device, which other runs use (first)" in log


def test_who_does_not_queue_up_starts_at_once(job_of: Jobs, tmp_path: Path) -> None:
    first = new(job_of(train={"steps": 100_000}), tmp_path)
    first.start()
    until(first, stepped)
    job = job_of("at once")
    second = TrainingJob(RunFolder.create(tmp_path / "runs", job), job, queue_up=False)
    assert second.run_here(lambda _: None) == "finished"
    first.stop()
    first.join(120)


def test_one_run_is_not_trained_twice(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(train={"steps": 100_000}), tmp_path)
    training.start()
    until(training, stepped)
    before = (training.run.path / "job.yaml").read_bytes()
    second = TrainingJob(RunFolder.open(training.run.path))
    with pytest.raises(RunHeld, match=f"process {os.getpid()}"):
        second.run_here(lambda _: None)
    assert training.run.status()["state"] == "running"
    assert (training.run.path / "job.yaml").read_bytes() == before
    training.stop()
    training.join(120)
    assert training.outcome == "stopped"
