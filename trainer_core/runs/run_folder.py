"""A run is a folder (design §5), readable with ordinary tools, and the only truth about the run.

Whatever of it is damaged, what is intact elsewhere takes its place: checkpoints say how far the run came and which job
it is, and what cannot be known is decided so that nothing is deleted.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from ..config import JobConfig, dump_job, load_job, resolved, validated
from ..errors import AdapterError, ConfigError, FoundryError, RunError, SaveError
from ..files import append_line, save_error, sync_folder, write_atomically
from ..reading import is_file, parse_json, read_json
from ..safetensors_file import read_header
from ..secrets import redacted
from .checkpoints import Checkpoint, Checkpoints
from .metrics import is_number, lines_of, parse_line
from .pins import read_pins, write_pins

STATES = ("queued", "running", "paused", "stopped", "finished", "failed")


class RunFolder:
    """One run's folder. Whatever writes raises SaveError if it cannot, and what was there before is intact then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoints = Checkpoints(path / "checkpoints")
        self._notes: list[str] = []

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, runs_root: Path, job: JobConfig) -> RunFolder:
        """A new run, in a folder that did not exist: the job's name, with `_2`, `_3` … if that is taken.

        Nothing of it is left behind if it cannot be written.
        """
        for number in range(1, 100_000):
            path = runs_root / (job.name if number == 1 else f"{job.name}_{number}")
            try:
                runs_root.mkdir(parents=True, exist_ok=True)
                path.mkdir()
            except FileExistsError:
                if not runs_root.is_dir():
                    raise SaveError(f"{runs_root}: is not a folder") from None
                continue
            except OSError as error:
                raise save_error(path, error) from error
            run = cls(path)
            try:
                run.write_job(job)
                run.write_status("queued", 0, job.train.steps)
                sync_folder(runs_root)
            except BaseException as error:  # Ctrl-C too
                shutil.rmtree(path, ignore_errors=True)
                if isinstance(error, OSError):
                    raise save_error(path, error) from error
                raise
            return run
        raise SaveError(f"{runs_root}: no free name for {job.name!r}")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run, however damaged.

        Raises:
            RunError: if the folder is none.
        """
        if not cls.is_one(path):
            raise RunError(f"{path}: is not a run folder (it has neither run.json nor checkpoints)")
        return cls(path.resolve())

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a folder is a run's: it holds run.json, however damaged, or a checkpoint, which knows as much.

        A job.yaml alone is none: it may be one that its user wrote, and a run would overwrite it.
        """
        return is_file(path / "run.json") or Checkpoints(path / "checkpoints").any()

    # --- the job -----------------------------------------------------------------------------------------------------

    def job(self) -> JobConfig:
        """The job as it was resolved when the run was made.

        If job.yaml is damaged, the newest intact checkpoint knows the job: job.yaml is then written anew, what was in
        it is kept as job.damaged.yaml, and log.txt and `repair` tell.

        Raises:
            ConfigError: if it cannot be read, and no checkpoint knows the job.
        """
        job, problem = self._read_job()
        if problem:
            path, kept = self.path / "job.yaml", self.path / "job.damaged.yaml"
            note = f"job.yaml is damaged and was made anew (what was in it: {kept.name}): {problem}"
            with contextlib.suppress(SaveError, OSError):  # the job is known all the same
                if path.is_file():
                    self._write(kept.name, path.read_bytes())
                self._write(path.name, dump_job(job).encode())
                self.log(note)
            self._notes.append(note)
        return job

    def write_job(self, job: JobConfig) -> None:
        """Makes a job the run's own, if it is not yet."""
        path, text = self.path / "job.yaml", dump_job(resolved(job, Path.cwd())).encode()
        with contextlib.suppress(OSError):
            if path.read_bytes() == text:
                return
        self._write(path.name, text)

    def _read_job(self) -> tuple[JobConfig, str | None]:
        """The job, and what is wrong with job.yaml if it had to be taken from a checkpoint."""
        path = self.path / "job.yaml"
        try:
            return load_job(path), None
        except ConfigError as error:
            for checkpoint in reversed(self.checkpoints()):
                with contextlib.suppress(AdapterError, ConfigError, KeyError, TypeError, ValueError):
                    known = read_header(checkpoint.state)["__metadata__"]["config"]
                    problem = str(error).splitlines()[0].removeprefix(f"{path}: ")
                    return validated(JobConfig, parse_json(known)), f"{problem}; step {checkpoint.step} knows the job"
            raise

    # --- state -------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What run.json says: state, step, steps, error, updated (seconds since 1970).

        If it is missing or damaged: `stopped`, at the newest intact checkpoint.
        """
        status = self._read_status()
        if status is not None:
            return status
        latest = self.latest()
        step, steps, updated = latest.step if latest else 0, 0, 0.0
        with contextlib.suppress(FoundryError):
            steps = self._read_job()[0].train.steps
        with contextlib.suppress(OSError):
            updated = (latest.path if latest else self.path).stat().st_mtime
        return {"state": "stopped", "step": step, "steps": max(step, steps), "error": None, "updated": updated}

    def _read_status(self) -> dict[str, Any] | None:
        """What run.json says, if that is a state of a run."""
        try:
            status: dict[str, Any] = read_json(self.path / "run.json")
            state, counts, error = status["state"], (status["step"], status["steps"]), status["error"]
            whole = state in STATES and all(type(count) is int and 0 <= count < 2**53 for count in counts)
            updated = status["updated"]
            whole = whole and (error is None or isinstance(error, str)) and is_number(updated) and 0 <= updated < 2**33
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return status if whole else None

    def write_status(self, state: str, step: int, steps: int, error: str | None = None) -> None:
        """Replaces run.json in one step. No access token that an error may hold gets there."""
        error = error and redacted(error)
        status = {"state": state, "step": step, "steps": steps, "error": error, "updated": round(time.time(), 3)}
        self._write("run.json", (json.dumps(status, indent=2) + "\n").encode())

    # --- metrics and log ---------------------------------------------------------------------------------------------

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        append_line(self.path / "metrics.jsonl", json.dumps(values))

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl (a crash may have cut the last, or left blocks of anything)."""
        return [values for line in lines_of(self.path) if (values := parse_line(line)) is not None]

    def losses(self) -> list[float]:
        """The logged losses, in order."""
        return [line["loss"] for line in self.metrics() if "loss" in line]

    def truncate_metrics(self, step: int) -> None:
        """Drops the lines of steps after `step`, which a resumed run makes again, and what is no line at all."""
        found, known = lines_of(self.path), self.metrics()
        if len(known) < len(found):
            self.log(f"metrics.jsonl: {len(found) - len(known)} damaged lines are left out")
        text = "".join(json.dumps(line) + "\n" for line in known if line["step"] <= step)
        self._write("metrics.jsonl", text.encode())

    def log(self, message: str) -> None:
        """Adds a line with the time to log.txt, but for access tokens."""
        append_line(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {redacted(message)}")

    # --- samples -----------------------------------------------------------------------------------------------------

    def sample_folder(self, step: int) -> Path:
        """Where the previews of a step go."""
        return self.path / "samples" / f"step_{step:08d}"

    def sample_paths(self, step: int | None = None) -> list[Path]:
        """Previews of a step, or of the last step that has some; of videos their first frames."""
        folders = sorted((self.path / "samples").glob("step_*")) if step is None else [self.sample_folder(step)]
        return sorted(folders[-1].glob("*.png")) if folders else []

    def sample_clips(self, step: int | None = None) -> list[Path]:
        """The videos among the previews of a step, or of the last step that has previews: animated WebPs."""
        return [clip for path in self.sample_paths(step) if (clip := path.with_suffix(".webp")).is_file()]

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, files: dict[str, bytes]) -> Checkpoint:
        """Writes a checkpoint that appears whole or not at all."""
        return self._checkpoints.save(step, files)

    def checkpoints(self) -> list[Checkpoint]:
        """The intact checkpoints, oldest first."""
        return self._checkpoints.intact()

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint."""
        return self._checkpoints.latest()

    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the lowest validation loss; None if no kept one was validated."""
        told = (parse_line(line) for line in lines_of(self.path) if '"validation_loss"' in line)  # few of very many
        losses = {line["step"]: line["validation_loss"] for line in told if line and "validation_loss" in line}
        measured = [found for found in self.checkpoints() if math.isfinite(losses.get(found.step, math.nan))]
        return min(measured, key=lambda checkpoint: losses[checkpoint.step], default=None)

    def examine_checkpoints(self) -> list[tuple[Checkpoint, str | None]]:
        """All checkpoints, oldest first, each with what is wrong with it or None."""
        return self._checkpoints.examine()

    def prune_checkpoints(self, keep: int, keep_best: bool = False) -> None:
        """Deletes all checkpoints but the newest `keep` intact ones, the pinned ones and, if asked, the best."""
        best = self.best() if keep_best else None
        self._checkpoints.prune(keep, self.pinned() | ({best.step} if best else set()))

    def pin(self, step: int) -> None:
        """Keeps a checkpoint for good.

        Raises:
            RunError: if there is no intact one of that step.
        """
        there = [checkpoint.step for checkpoint in self.checkpoints()]
        if step not in there:
            told = ", ".join(map(str, there)) or "none"
            raise RunError(f"{self.path}: there is no intact checkpoint of step {step} to pin; there are: {told}")
        write_pins(self.path, self.pinned() | {step})

    def unpin(self, step: int) -> None:
        """Lets a pinned checkpoint go the way of the others."""
        write_pins(self.path, self.pinned() - {step})

    def pinned(self) -> frozenset[int]:
        """The steps whose checkpoints are never deleted; all there are if pinned.json is damaged."""
        pins = read_pins(self.path)
        return frozenset(found.step for found in self._checkpoints.listed()) if pins is None else pins

    def _write(self, name: str, data: bytes) -> None:
        """Replaces a file of the run, whose folder must be there: one that its user deleted does not come back."""
        write_atomically(self.path / name, data, inside=self.path)

    # --- after a crash -----------------------------------------------------------------------------------------------

    def repair(self) -> list[str]:
        """Clears what a crash left half-done and mends what is damaged, as far as it can be; says what was found.

        Only the holder of the run's lock may do that.
        """
        notes, self._notes = self._notes, []
        notes += [
            f"checkpoint of step {step} was put back: a crash came while it made way for a new one"
            for step in self._checkpoints.clear_leftovers()
        ]
        for path in [*self.path.glob(".*.tmp"), *self.path.glob("samples/*/.*.tmp")]:
            with contextlib.suppress(OSError):  # the next start tries again
                path.unlink(missing_ok=True)
        if self._read_status() is None:
            notes.append("run.json was missing or damaged; how far the run came is known from its checkpoints")
        if read_pins(self.path) is None:
            write_pins(self.path, self.pinned())
            notes.append(
                "pinned.json is damaged: all checkpoints there are count as pinned now, so that none is deleted; unpin "
                "those that need not be kept"
            )
        return notes
