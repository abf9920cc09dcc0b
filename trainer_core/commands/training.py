"""`train` and `resume`: a job on this thread, its progress on the terminal, Ctrl-C as a polite stop."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..config import load_job
from ..errors import RunError
from ..training.events import Event, StepDone
from ..training.job import TrainingJob
from ..training.run_folder import RunFolder
from . import INTERRUPTED, OK
from .terminal import Progress, quiet_libraries


def train(args: argparse.Namespace) -> int:
    """Trains a job from YAML in a new run folder."""
    job = load_job(args.job)
    return _run(TrainingJob.new(args.runs, job), args.runs)


def resume(args: argparse.Namespace) -> int:
    """Continues a run from its last intact checkpoint; a finished run has nothing left to do."""
    run = find_run(args.run, args.runs)
    if run.status().get("state") == "finished":
        print(f"{run.path} is finished already")
        return OK
    return _run(TrainingJob(run), args.runs)


def find_run(name: str, runs: Path) -> RunFolder:
    """A run by its folder or by its name under the runs folder.

    Raises:
        RunError: if neither is there; the message lists what is.
    """
    for path in (Path(name).expanduser(), runs / name):
        if (path / "run.json").is_file():
            return RunFolder.open(path)
    there = sorted(path.parent.name for path in runs.glob("*/run.json"))
    hint = f"{runs} holds: {', '.join(there)}" if there else f"{runs} holds no runs; --runs names another folder"
    raise RunError(f"no run {name!r}: {hint}")


def _run(job: TrainingJob, runs: Path) -> int:
    """Runs a job to its end here and says what became of it."""
    quiet_libraries()
    progress = Progress()
    progress.say(f"run {job.run.path}")
    last = _LastStep()

    def listen(event: Event) -> None:
        last(event)
        progress(event)

    with _stop_on_signal(job):
        try:
            outcome = job.run_here(listen)
        finally:
            progress.clear()
    newest = job.run.latest()
    if outcome == "finished":
        progress.say(f"finished {last.summary()}".rstrip())
        if newest:
            progress.say(f"LoRA: {newest.lora}")
        return OK
    saved = f"saved at step {newest.step}" if newest else "no step was done yet"
    progress.say(f"stopped, {saved}. To go on: {_resume_command(job.run, runs)}")
    return INTERRUPTED


class _LastStep:
    """Remembers how far the job came and how fast."""

    def __init__(self) -> None:
        self.event: StepDone | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.event = event

    def summary(self) -> str:
        if self.event is None:
            return ""
        return f"{self.event.steps} steps, loss {self.event.loss:.4f}, {self.event.seconds_per_step:.2f} s/step"


@contextmanager
def _stop_on_signal(job: TrainingJob) -> Iterator[None]:
    """Makes Ctrl-C (and SIGTERM, Ctrl-Break) stop the job at its next step; a second one interrupts at once."""

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        job.stop()
        # os.write and not print: the signal may have come in the middle of another print.
        os.write(2, b"\nstopping after this step, then saving; once more to leave at once, unsaved\n")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGBREAK")  # the last exists on Windows alone
    before = {number: signal.signal(number, stop) for name in names if (number := getattr(signal, name, None))}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resume_command(run: RunFolder, runs: Path) -> str:
    """What to type to go on with a run, quoted where its path has spaces."""
    name = run.name if runs == Path("runs") else str(run.path)
    return f'lora-foundry resume "{name}"' if " " in name else f"lora-foundry resume {name}"
