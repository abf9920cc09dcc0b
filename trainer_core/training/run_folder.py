"""A run is a folder (design §5), readable with ordinary tools, and the only truth about the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import JobConfig, dump_job, load_job, resolved
from ..errors import RunError, SaveError
from ..files import save_error, sha256_of, sync_folder, write_atomically, write_durably

LORA, STATE, MANIFEST = "lora.safetensors", "state.safetensors", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: it holds exactly `step` optimizer updates."""

    step: int
    path: Path

    @property
    def lora(self) -> Path:
        """The LoRA in ComfyUI's names."""
        return self.path / LORA

    @property
    def state(self) -> Path:
        """What training goes on from."""
        return self.path / STATE


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._examined: dict[tuple[object, ...], str | None] = {}

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, runs_root: Path, job: JobConfig) -> RunFolder:
        """A new run, in a folder that did not exist: the job's name, with `_2`, `_3` … if that is taken.

        Raises:
            SaveError: if it cannot be written; nothing is left behind.
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
                write_atomically(path / "job.yaml", dump_job(resolved(job, Path.cwd())).encode())
                run.write_status("queued", 0, job.train.steps)
            except SaveError:
                shutil.rmtree(path, ignore_errors=True)
                raise
            return run
        raise SaveError(f"{runs_root}: no free name for {job.name!r}")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            RunError: if the folder is none.
        """
        if not (path / "job.yaml").is_file():
            raise RunError(f"{path}: is not a run folder (it has no job.yaml)")
        return cls(path.resolve())

    def job(self) -> JobConfig:
        """The job as it was resolved when the run was made."""
        return load_job(self.path / "job.yaml")

    # state

    def status(self) -> dict[str, Any]:
        """What run.json says.

        Raises:
            RunError: if it is missing or damaged.
        """
        try:
            status: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / 'run.json'}: cannot be read: {error}") from None
        return status

    def write_status(self, state: str, step: int, steps: int, error: str | None = None) -> None:
        """Replaces run.json in one step."""
        status = {"state": state, "step": step, "steps": steps, "error": error, "updated": round(time.time(), 3)}
        write_atomically(self.path / "run.json", (json.dumps(status, indent=2) + "\n").encode())

    # metrics and log

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        self._append("metrics.jsonl", json.dumps(values))

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl (a crash may have cut the last)."""
        lines = []
        for line in self._lines("metrics.jsonl"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    def losses(self) -> list[float]:
        """The logged losses, in order."""
        return [line["loss"] for line in self.metrics() if "loss" in line]

    def truncate_metrics(self, step: int) -> None:
        """Drops the lines of steps after `step`, which a resumed run makes again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path / "metrics.jsonl", text.encode())

    def log(self, message: str) -> None:
        """Adds a line with the time to log.txt."""
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}")

    def _append(self, name: str, line: str) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise save_error(self.path / name, error) from error

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    # samples

    def sample_folder(self, step: int) -> Path:
        """Where the previews of a step go."""
        return self.path / "samples" / f"step_{step:08d}"

    def sample_paths(self, step: int | None = None) -> list[Path]:
        """Previews of a step, or of the last step that has some."""
        folders = sorted((self.path / "samples").glob("step_*")) if step is None else [self.sample_folder(step)]
        return sorted(folders[-1].glob("*.png")) if folders else []

    # checkpoints

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def save_checkpoint(self, step: int, files: dict[str, bytes]) -> Checkpoint:
        """Writes a checkpoint that appears whole or not at all: temporary folder, fsync, manifest last, one rename.

        Raises:
            SaveError: if it cannot be written; earlier checkpoints are untouched and nothing half-written is left.
        """
        final = self._checkpoints / f"step_{step:08d}"
        temporary = self._checkpoints / f".tmp_{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir(parents=True)
            for name, data in files.items():
                write_durably(temporary / name, data)
            sums = {name: {"size": len(data), "sha256": sha256_of(temporary / name)} for name, data in files.items()}
            manifest = {"step": step, "files": sums}
            write_durably(temporary / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
            sync_folder(temporary)
            self._put_in_place(temporary, final)
        except OSError as error:
            raise save_error(final, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Checkpoint(step, final)

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        """Renames a complete folder; one of the same name (damaged, or the same step again) makes way for it."""
        old = self._checkpoints / f".old_{uuid.uuid4().hex[:8]}"
        if final.exists():
            os.replace(final, old)
        try:
            os.replace(temporary, final)
        except OSError:
            if old.exists():
                os.replace(old, final)
            raise
        sync_folder(self._checkpoints)
        shutil.rmtree(old, ignore_errors=True)

    def checkpoints(self) -> list[Checkpoint]:
        """The intact checkpoints, oldest first."""
        return [found for found, problem in self.examine_checkpoints() if problem is None]

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint."""
        for path in reversed(self._checkpoint_folders()):
            found = Checkpoint(_step_of(path), path)
            if self._problem(found) is None:
                return found
        return None

    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the lowest validation loss; None if no kept one was validated."""
        losses = {line["step"]: line["validation_loss"] for line in self.metrics() if "validation_loss" in line}
        measured = [checkpoint for checkpoint in self.checkpoints() if checkpoint.step in losses]
        return min(measured, key=lambda checkpoint: losses[checkpoint.step], default=None)

    def examine_checkpoints(self) -> list[tuple[Checkpoint, str | None]]:
        """All checkpoints, oldest first, each with what is wrong with it or None."""
        found = [Checkpoint(_step_of(path), path) for path in self._checkpoint_folders()]
        return [(checkpoint, self._problem(checkpoint)) for checkpoint in found]

    def _problem(self, checkpoint: Checkpoint) -> str | None:
        """What is wrong with a checkpoint; its files are hashed again only if one of them was written since."""
        try:
            marks = [
                (path, status.st_size, status.st_mtime_ns)
                for path in sorted(checkpoint.path.iterdir())
                for status in [path.stat()]
            ]
        except OSError as error:
            return f"its files cannot be read ({error})"
        key = tuple(marks)
        if key not in self._examined:
            self._examined[key] = _problem(checkpoint)
        return self._examined[key]

    def _checkpoint_folders(self) -> list[Path]:
        return sorted(path for path in self._checkpoints.glob("step_*") if path.name[5:].isdigit())

    def prune_checkpoints(self, keep: int) -> None:
        """Deletes all but the newest `keep` intact checkpoints; damaged ones count for nothing and go as well."""
        kept = {found.path for found in self.checkpoints()[-keep:]}
        for path in self._checkpoint_folders():
            if path not in kept:
                self._remove(path)

    def _remove(self, folder: Path) -> None:
        """Deletes a checkpoint so that a kill on the way leaves no half of one: it is renamed first."""
        old = self._checkpoints / f".old_{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):  # a file of it is open elsewhere (Windows): the next pruning tries again
            os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Removes what a crash left half-written."""
        for path in [*self._checkpoints.glob(".tmp_*"), *self._checkpoints.glob(".old_*")]:
            shutil.rmtree(path, ignore_errors=True)
        for path in [*self.path.glob(".*.tmp"), *self.path.glob("samples/*/.*.tmp")]:
            path.unlink(missing_ok=True)


def _step_of(path: Path) -> int:
    return int(path.name[5:])


def _problem(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint, by its manifest."""
    try:
        manifest = json.loads((checkpoint.path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["step"] != checkpoint.step:
            return f"its manifest is of step {manifest['step']}"
        if not {LORA, STATE} <= manifest["files"].keys():
            return "its manifest names not all files"
        for name, known in manifest["files"].items():
            path = checkpoint.path / Path(name).name
            if path.stat().st_size != known["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {known['size']}"
            if sha256_of(path) != known["sha256"]:
                return f"{name} is not what was written (its hash differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest or a file cannot be read ({error})"
    return None
