"""A job on this thread, as `train`, `resume` and `queue start` have it: progress, signals, and what became of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..api import Event, StepDone, TrainingJob
from . import INTERRUPTED, OK
from .runs import command_for
from .terminal import Progress, quiet_libraries


@dataclass
class Ended:
    """How a job ended."""

    outcome: str
    signalled: bool
    """A signal stopped it, and not somebody's `tell RUN stop`."""

    @property
    def exit_code(self) -> int:
        return OK if self.outcome == "finished" else INTERRUPTED


def follow(job: TrainingJob, runs: Path) -> Ended:
    """Runs a job to its end here, and says what became of it.

    Raises:
        FoundryError: if the job failed.
    """
    progress = Progress(on_pause=command_for("tell", job.run, runs, "continue"))
    last = _LastStep()

    def listen(event: Event) -> None:
        last(event)
        progress(event)

    with stop_on_signal(job) as asked:
        # before all that takes time: from here on the run's folder is there, and says how it ended
        progress.say(f"run {job.run.path}")
        try:
            quiet_libraries()
            outcome = job.run_here(listen)
        finally:
            progress.clear()
    newest = job.run.latest()
    if outcome == "finished":
        progress.say(f"finished {last.summary()}".rstrip())
        if newest:
            progress.say(f"LoRA: {newest.lora}")
        return Ended(outcome, asked.stop)
    if asked.at_once and last.step > (newest.step if newest else 0):
        saved = f"step {last.step} is not saved, " + (f"step {newest.step} is" if newest else "nor any other")
    else:
        saved = f"saved at step {newest.step}" if newest else "no step was done yet"
    progress.say(f"stopped, {saved}. To go on: {command_for('resume', job.run, runs)}")
    return Ended(outcome, asked.stop)


@dataclass
class Asked:
    """What signals have asked for."""

    stop: bool = False
    at_once: bool = False


@contextmanager
def stop_on_signal(job: TrainingJob) -> Iterator[Asked]:
    """Makes Ctrl-C stop the job at its next step, and a second one at once. SIGTERM and SIGHUP always stop politely.

    A system that shuts down sends SIGTERM, perhaps more than once, and a terminal that is closed sends SIGHUP: nobody
    wishes to lose what a polite stop saves, nor the place in the queue.
    """
    asked = Asked()

    def stop(number: int, _frame: FrameType | None) -> None:
        polite, again = signal.Signals(number).name in _POLITE, asked.stop
        asked.stop = True  # before anything is told: the next signal may come while this one is at work
        if again and not polite:
            asked.at_once = True
            _tell(b"leaving at once, unsaved")
            raise KeyboardInterrupt
        if not again:
            job.stop(keep_place=polite)
            more = b"" if polite else b"; once more to leave at once, unsaved"
            _tell(b"stopping after this step, then saving" + more)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield asked
        return
    numbers = [number for name in (*_POLITE, *_URGENT) if (number := getattr(signal, name, None))]
    # what is ignored stays so: nohup ignores SIGHUP
    before = {one: signal.signal(one, stop) for one in numbers if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deaf() -> Iterator[None]:
    """No signal stops this process: the one that it helps hears them too, and says when it is over."""
    numbers = [number for name in (*_POLITE, *_URGENT) if (number := getattr(signal, name, None))]
    before = {one: signal.signal(one, signal.SIG_IGN) for one in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_POLITE = ("SIGTERM", "SIGHUP")
_URGENT = ("SIGINT", "SIGBREAK")  # Ctrl-C, and on Windows Ctrl-Break


def _tell(message: bytes) -> None:
    """Writes past Python's own buffers: the signal may have come in the middle of another print."""
    with suppress(OSError):  # the terminal is closed
        os.write(2, b"\n" + message + b"\n")


class _LastStep:
    """Remembers how far the job came and how fast."""

    def __init__(self) -> None:
        self.event: StepDone | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.event = event

    @property
    def step(self) -> int:
        return self.event.step if self.event else 0

    def summary(self) -> str:
        if self.event is None:
            return ""
        return f"{self.event.steps} steps, loss {self.event.loss:.4f}, {self.event.seconds_per_step:.2f} s/step"
