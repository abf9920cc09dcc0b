"""A job: a run from start to end, on a thread of its own or on the caller's. It holds the run's lock all the while.

queued ─ (its turn) ─ running ─ finished, stopped, failed
             └──── paused ┘
"""

from __future__ import annotations

import json
import queue
import threading
import time
import traceback
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import check_job
from .config import JobConfig, dump_job, resolved, validated
from .errors import FoundryError, ResumeRefused, SaveError, TrainingError, first_line
from .families.registry import job_with_family
from .files import write_atomically
from .runs.events import Event, Listener, MemoryPlanned, Phase, RequestDone, Skipped, StateChanged, Warning, log_line
from .runs.followed import FollowedRun, NoRequests
from .runs.requests import CONTINUE, PAUSE, SAMPLE, SAVE, STOP, Requests
from .runs.run_folder import RunFolder
from .runs.run_lock import RunLock
from .training.advice import out_of_memory
from .training.parallel import ALONE, Ranks

if TYPE_CHECKING:
    import torch

    from .runs.queue import Ticket

_NO_QUEUE = "training without the queue, so that other runs on this device will not wait for this one: {0}"
_POLL_SECONDS = 0.2
"""Between two looks at the queue and at requests, while waiting."""


class TrainingJob:
    """Trains one run, from its newest intact checkpoint if there is one. The thread calls nothing of its host."""

    def __init__(
        self, run: RunFolder, job: JobConfig | None = None, accept: Collection[str] = (), queue_up: bool = True
    ) -> None:
        """Takes the run's own job, or the one given.

        Args:
            accept: what may differ from the run's checkpoint by the user's explicit wish (`resume_rules`).
            queue_up: wait until no other run trains on the device.

        Raises:
            ConfigError: if the run's job.yaml cannot be read.
        """
        self.run = run
        self.job = job or run.job()
        self.error: BaseException | None = None
        self.outcome: str | None = None
        """finished, stopped, paused or failed, once it has ended"""
        self.ranks = ALONE
        """The processes that train it, of which this one leads."""
        self._accept, self._queue_up = accept, queue_up
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._requests = Requests(run.path)
        self._leaves_when_paused = self._keeps_place = False
        self._thread: threading.Thread | None = None
        self._before: dict[str, Any] = {}
        """The run's status when it was last at rest, which it goes back to if going on is refused."""

    @classmethod
    def new(cls, runs_root: Path, job: JobConfig, queue_up: bool = True) -> TrainingJob:
        """A job in a new run folder, which is made only if `check_job` finds nothing wrong.

        Raises:
            FoundryError: as `check_job`, or if the folder cannot be written; then nothing is left behind.
        """
        job = job_with_family(job)
        check_job(job)
        return cls(RunFolder.create(runs_root, job), job, queue_up=queue_up)

    # --- from other threads ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the job's thread."""
        self._thread = threading.Thread(target=self._run, args=(self._events.put,), daemon=True)
        self._thread.name = f"lora-foundry {self.run.name}"
        self._thread.start()

    def events(self) -> list[Event]:
        """What has happened since the last call; never blocks."""
        return [self._events.get() for _ in range(self._events.qsize())]

    def stop(self, keep_place: bool = False) -> None:
        """Asks for a stop at the next step: saves, and leaves the run resumable.

        Args:
            keep_place: the run keeps its place in the queue, for when the system is up again.
        """
        self._keeps_place = keep_place
        self._requests.ask(STOP)

    def pause(self, leave: bool = False) -> None:
        """Asks for a pause at the next step: saves, frees the device for others, and waits for `go_on`.

        Args:
            leave: end with the outcome `paused` instead of waiting; another job on the run then goes on.
        """
        self._leaves_when_paused = leave
        self._requests.ask(PAUSE)

    def go_on(self) -> None:
        """Ends a pause; training continues as if there had been none."""
        self._requests.ask(CONTINUE)

    def save_now(self) -> None:
        """Asks for a checkpoint after the next step."""
        self._requests.ask(SAVE)

    def sample_now(self) -> None:
        """Asks for previews after the next step."""
        self._requests.ask(SAMPLE)

    @property
    def alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the thread, at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    # --- the job's own thread ----------------------------------------------------------------------------------------

    def run_here(self, listener: Callable[[Event], None]) -> str:
        """Runs on this thread and gives the outcome. KeyboardInterrupt is a stop at once, without saving.

        Raises:
            RunHeld: if another process or thread works on the run; then nothing was touched.
            FoundryError: on failure, after the run folder says so.
        """
        self._run(listener)
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    def _run(self, listener: Listener) -> None:
        lock = RunLock(self.run.path)
        try:
            lock.acquire()
        except FoundryError as error:
            self.outcome, self.error = "failed", error
            listener(StateChanged("failed", self._saved_step(), self.job.train.steps, str(error)))
            return
        try:
            self._requests.forget_files()
            self._work(listener)
        finally:
            lock.release()

    def _work(self, listener: Listener) -> None:
        def emit(event: Event) -> None:
            if isinstance(event, (Phase, MemoryPlanned, RequestDone, Warning, StateChanged, Skipped)):
                self.run.log(log_line(event))
            listener(event)

        self._before = self.run.status()
        try:
            import torch

            # a thread starts outside inference mode, but run_here may be called from inside it
            with torch.inference_mode(False), torch.enable_grad():
                self.outcome = self._in_turn(emit)
        except KeyboardInterrupt:
            self.outcome = "stopped"
            self._record("stopped", "left at once, unsaved", None, listener)
        except ResumeRefused as error:
            self.outcome, self.error = "failed", error
            state, problem, steps = (self._before[fact] for fact in ("state", "error", "steps"))
            self._record(state, f"not gone on with: {error}", problem, listener, steps)
        except BaseException as error:  # noqa: BLE001 - the run folder must say how the run ended, whatever ended it
            from .families.device import is_out_of_memory

            if is_out_of_memory(error):
                error = TrainingError(f"{out_of_memory(self.job)} ({first_line(error)})")
            self.outcome, self.error = "failed", error
            message = str(error) or type(error).__name__
            details = message if isinstance(error, FoundryError) else traceback.format_exc()
            self._record("failed", details, message, listener)

    def _in_turn(self, emit: Listener) -> str:
        """Waits for the device, trains, and waits again after a pause; gives the outcome."""
        from .families.device import pick_device, release_memory
        from .training.session import work

        device = pick_device(self.job.model.device)
        ticket = self._ticket(emit, device)
        ours = {self._job_text(), dump_job(resolved(self.job, Path.cwd()))}
        try:
            while True:
                ended = self._wait(ticket, emit)
                self._keep_edit(ours, emit)
                if not ended:
                    self.ranks.tell(json.dumps([str(self.run.path), self.job.model_dump(mode="json"), [*self._accept]]))
                outcome = ended or work(self.run, self.job, emit, self._requests, self._accept, self.ranks)
                release_memory(device)
                if outcome != "paused" or self._leaves_when_paused:
                    self._enter(outcome, emit)
                    self.ranks.tell()
                    return outcome
                if ticket:
                    ticket.leave(keep_place=True)
        finally:
            if ticket:
                ticket.leave(keep_place=self._keeps_place)

    def _ticket(self, emit: Listener, device: torch.device) -> Ticket | None:
        from .runs.queue import DeviceQueue, device_key

        if not self._queue_up:
            return None
        try:
            return DeviceQueue(device_key(device)).join(self.run.path)
        except SaveError as error:
            emit(Warning(_NO_QUEUE.format(error)))
            return None

    def _wait(self, ticket: Ticket | None, emit: Listener) -> str | None:
        """Waits while others train on the device, and while paused. Gives `stopped` or `paused` if it ends there."""
        state, told = "", [""]
        while True:
            if self._requests.asked(STOP):
                return "stopped"
            if self._requests.asked(PAUSE):
                if self._leaves_when_paused:
                    return "paused"
                if state != "paused":
                    state = self._enter("paused", emit)
            else:
                try:
                    if ticket is None or ticket.try_enter():
                        self._requests.take(CONTINUE)
                        return None
                    ahead = [waiting.run.name for waiting in ticket.ahead()]
                except SaveError as error:
                    emit(Warning(_NO_QUEUE.format(error)))
                    return None
                if state != "queued":
                    state, told = self._enter("queued", emit), []
                if ahead != told:
                    told = ahead
                    names = ", ".join(ahead[:3]) + (", …" if len(ahead) > 3 else "")
                    emit(Phase(f"waiting for the device, which other runs use ({names})", 0, 1))
            time.sleep(_POLL_SECONDS)

    def _keep_edit(self, ours: Collection[str], emit: Listener) -> None:
        """Keeps what a user made of job.yaml while the run waited: this job is what it was, and takes its place."""
        text = self._job_text()
        if text and text not in ours:
            edited = self.run.path / "job.edited.yaml"
            write_atomically(edited, text.encode("utf-8", "surrogateescape"), inside=self.run.path)
            emit(
                Warning(
                    "job.yaml was changed while the run waited, and this job goes on as it was; the change is kept as "
                    "job.edited.yaml. To use it, stop the run, put it in the place of job.yaml, and resume"
                )
            )

    def _job_text(self) -> str:
        try:
            return (self.run.path / "job.yaml").read_bytes().decode("utf-8", "surrogateescape")
        except OSError:  # what is missing was edited by nobody
            return ""

    def _enter(self, state: str, emit: Listener) -> str:
        """The run's state changes while nothing is in memory: its step is the last that was saved."""
        step, steps = self._saved_step(), self.job.train.steps
        self.run.write_status(state, step, steps)
        if state == "paused":
            self._before = self.run.status()
        emit(StateChanged(state, step, steps))
        return state

    def _record(
        self, state: str, details: str, message: str | None, listener: Listener, steps: int | None = None
    ) -> None:
        """Writes down an end that came unasked, as far as that is possible."""
        step, steps = self._saved_step(), self.job.train.steps if steps is None else steps
        failed_writes: list[FoundryError] = []
        writes = (
            partial(self.run.write_status, state, step, steps, message),
            partial(self.run.log, f"{state}: {details}"),
        )
        # a folder that the user has deleted must not come back
        for write in writes if self.run.path.is_dir() else ():
            try:
                write()
            except FoundryError as second:  # the disk is full, most likely: the checkpoints on it still count
                failed_writes.append(second)
        if failed_writes:
            message = f"{message or details} (and the run folder could not be updated: {failed_writes[0]})"
        listener(StateChanged(state, step, steps, message))

    def _saved_step(self) -> int:
        latest = self.run.latest()
        return latest.step if latest else 0


def serve(ranks: Ranks) -> None:
    """Computes with the process that leads a run, for as long as it trains, and says nothing.

    Raises:
        FoundryError: what keeps this process from it; the run then fails.
    """
    import torch

    from .training.session import work

    while told := ranks.tell():
        path, settings, accept = json.loads(told)
        job = ranks.job(validated(JobConfig, settings))
        with torch.inference_mode(False), torch.enable_grad():
            work(FollowedRun(Path(path)), job, lambda _: None, NoRequests(), accept, ranks)
