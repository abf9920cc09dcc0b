"""A job: a run from start to end, on a thread of its own or on the caller's."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..config import JobConfig
from ..errors import FoundryError, TrainingError
from .events import Event, Listener, Phase, StateChanged, Warning
from .run_folder import RunFolder

_OUT_OF_MEMORY = (
    "The GPU's memory is not enough. In this order: switch on train.gradient_checkpointing, use smaller "
    "datasets.resolutions, a smaller train.batch_size (with more gradient_accumulation), a lower adapter.rank. What "
    "was saved before is intact"
)


class TrainingJob:
    """Trains one run, from its newest intact checkpoint if there is one. The thread calls nothing of its host."""

    def __init__(self, run: RunFolder, job: JobConfig | None = None) -> None:
        """Takes the run's own job, or the one given.

        Raises:
            ConfigError: if the run's job.yaml cannot be read.
        """
        self.run = run
        self.job = job or run.job()
        self.error: BaseException | None = None
        self.outcome: str | None = None
        """finished, stopped or failed, once it has ended"""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def new(cls, runs_root: Path, job: JobConfig) -> TrainingJob:
        """A job in a new run folder, which is made only if data, base and preview size can be used.

        Raises:
            FoundryError: what is wrong with them, or with writing the folder; then nothing is left behind.
        """
        from ..data.prepare import check_controls
        from ..data.summary import summarize
        from ..families.registry import open_base
        from ..sampling import SamplerSettings
        from .optimizers import check_optimizer

        base = open_base(job.model)
        check_optimizer(job.train, base.device)
        check_controls(job, base.spec)
        for dataset in job.datasets:
            summarize(dataset, job.model)
        SamplerSettings.of(job.sample, base)
        return cls(RunFolder.create(runs_root, job), job)

    def start(self) -> None:
        """Starts the job's thread."""
        self._thread = threading.Thread(target=self._run_caught, name=f"lora-foundry {self.run.name}", daemon=True)
        self._thread.start()

    def events(self) -> list[Event]:
        """What has happened since the last call; never blocks."""
        arrived = []
        while not self._events.empty():
            arrived.append(self._events.get())
        return arrived

    def stop(self) -> None:
        """Asks for a stop at the next step: saves, and leaves the run resumable."""
        self._stop.set()

    @property
    def alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the thread, at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def run_here(self, listener: Callable[[Event], None]) -> str:
        """Runs on this thread and gives the outcome.

        Raises:
            FoundryError: on failure, after the run folder says so.
        """
        self._run(listener)
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    def _run_caught(self) -> None:
        self._run(self._events.put)

    def _run(self, listener: Listener) -> None:
        import torch

        def emit(event: Event) -> None:
            if isinstance(event, (Phase, Warning, StateChanged)):
                self.run.log(_line(event))
            listener(event)

        try:
            # a thread starts outside inference mode, but run_here may be called from inside it
            with torch.inference_mode(False), torch.enable_grad():
                self.outcome = _train(self.run, self.job, emit, self._stop.is_set)
        except torch.OutOfMemoryError as error:
            self.outcome, self.error = "failed", TrainingError(f"{_OUT_OF_MEMORY} ({str(error).splitlines()[0]})")
            self._record_failure(self.error, listener)
        except BaseException as error:  # noqa: BLE001 - the run folder must say how the run ended, whatever ended it
            self.outcome, self.error = "failed", error
            self._record_failure(error, listener)

    def _record_failure(self, error: BaseException, listener: Listener) -> None:
        step, steps = self._step(), self.job.train.steps
        message = str(error) or type(error).__name__
        details = message if isinstance(error, FoundryError) else traceback.format_exc()
        failed_writes: list[FoundryError] = []
        for write, text in (
            (partial(self.run.write_status, "failed", step, steps), message),
            (self.run.log, f"failed: {details}"),
        ):
            try:
                write(text)
            except FoundryError as second:  # the disk is full, most likely: the checkpoints on it still count
                failed_writes.append(second)
        if failed_writes:
            message = f"{message} (and the run folder could not be updated: {failed_writes[0]})"
        listener(StateChanged("failed", step, steps, message))

    def _step(self) -> int:
        latest = self.run.latest()
        return latest.step if latest else 0


def _train(run: RunFolder, job: JobConfig, emit: Listener, should_stop: Callable[[], bool]) -> str:
    """Prepares the data, loads the base, trains. Gives `finished` or `stopped`."""
    from ..data.cache import CACHE_FOLDER, TensorCache
    from ..data.prepare import PreparedData
    from ..families.registry import open_base
    from ..sampling import Interrupted, SamplerSettings
    from .loop import Trainer
    from .previews import preview_texts

    steps = job.train.steps

    def enter(state: str, step: int) -> None:
        run.write_status(state, step, steps)
        emit(StateChanged(state, step, steps))

    def progress(what: str, done: int, total: int) -> None:
        if should_stop():
            raise Interrupted
        emit(Phase(what, done, total))

    latest = run.latest()
    enter("running", latest.step if latest else 0)
    trainer = None
    try:
        base = open_base(job.model)
        SamplerSettings.of(job.sample, base)  # a wrong preview size is told now, not after an hour
        progress("scanning the data", 0, 1)
        cache = TensorCache(run.path.parent / CACHE_FOLDER)
        data = PreparedData(job, base, cache)
        prompts = preview_texts(job)
        data.encode_texts([*prompts, job.sample.negative_prompt] if prompts else [], progress)
        data.encode_images(progress)
        cache.prune(int(job.cache.limit_gb * 1e9))
        progress("loading the base", 0, 1)
        trainer = Trainer(run, job, base, data, emit, should_stop)
        trainer.restore()
        finished = trainer.train()
    except Interrupted:
        finished = False
    state = "finished" if finished else "stopped"
    enter(state, trainer.step if trainer else (latest.step if latest else 0))
    return state


def _line(event: Event) -> str:
    """An event as a line of log.txt."""
    if isinstance(event, StateChanged):
        return f"{event.state} at step {event.step} of {event.steps}" + (f": {event.error}" if event.error else "")
    if isinstance(event, Phase):
        return f"{event.what} ({event.done} of {event.total})"
    return f"warning: {event.message}" if isinstance(event, Warning) else repr(event)
