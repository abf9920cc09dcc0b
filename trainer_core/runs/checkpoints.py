"""Checkpoints: each a folder that appears whole or not at all, and a manifest that tells damage from what was written.

A step's folder is `step_00000250`. Folders whose names begin with a dot are on their way: `.tmp_` is being written,
`.old_` made way for a newer one of the same step, `.gone_` is being deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..files import make_folder, save_error, sha256_of, sync_folder, write_durably
from ..reading import read_json

LORA, STATE, MANIFEST = "lora.safetensors", "state.safetensors", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: it holds exactly `step` optimizer updates."""

    step: int
    path: Path

    @property
    def lora(self) -> Path:
        """The LoRA in ComfyUI's names; of several experts, the first one's."""
        return self.loras[0]

    @property
    def loras(self) -> list[Path]:
        """The LoRA of each expert (`lora_high_noise.safetensors` …), or the one there is."""
        return sorted(self.path.glob("lora_*.safetensors")) or [self.path / LORA]

    @property
    def endings(self) -> list[str]:
        """What tells copies of `loras` apart by their names: `_high_noise` …, or nothing where there is one."""
        return [path.stem.removeprefix("lora") for path in self.loras]

    @property
    def state(self) -> Path:
        """What training goes on from."""
        return self.path / STATE


class Checkpoints:
    """The folder with a run's checkpoints; it need not be there yet, but the run's must be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._examined: dict[tuple[object, ...], str | None] = {}

    def save(self, step: int, files: dict[str, bytes]) -> Checkpoint:
        """Writes a checkpoint that appears whole or not at all: temporary folder, fsync, manifest last, one rename.

        Raises:
            SaveError: if it cannot be written; earlier checkpoints are untouched and nothing half-written is left.
        """
        final, temporary = self._place(step), self._aside("tmp")
        try:
            self._make_folder()
            temporary.mkdir()
            for name, data in files.items():
                write_durably(temporary / name, data)
            # hashes of what should be there, and not of what the disk gives back
            sums = {
                name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            }
            manifest = {"step": step, "files": sums}
            write_durably(temporary / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
            sync_folder(temporary)
            self._put_in_place(temporary, final)
        except OSError as error:
            raise save_error(final, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Checkpoint(step, final)

    def intact(self) -> list[Checkpoint]:
        """The intact checkpoints, oldest first."""
        return [found for found, problem in self.examine() if problem is None]

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint."""
        return next((found for found in reversed(self.listed()) if self._problem(found) is None), None)

    def examine(self) -> list[tuple[Checkpoint, str | None]]:
        """All checkpoints, oldest first, each with what is wrong with it or None."""
        return [(found, self._problem(found)) for found in self.listed()]

    def any(self) -> bool:
        """Whether there is a checkpoint, intact or not: a folder whose manifest says its step."""
        return any(_manifest_step(found) == found.step for found in self.listed())

    def listed(self) -> list[Checkpoint]:
        """Whatever is named like a checkpoint, oldest first."""
        paths = [path for path in self.folder.glob("step_*") if path.name[5:].isdecimal() and path.name.isascii()]
        return sorted((Checkpoint(int(path.name[5:]), path) for path in paths), key=lambda found: found.step)

    def prune(self, keep: int, spared: Collection[int] = ()) -> None:
        """Deletes what is older than the newest `keep` intact checkpoints, but for the steps that are `spared`.

        Damaged ones count for nothing, so that the newest intact ones stay whatever came after them; they are deleted
        once they are old enough (a folder that is still being copied looks damaged too).
        """
        kept = self.intact()[-keep:]
        for found in self.listed():
            if kept and found.step < kept[0].step and found.step not in spared:
                self._remove(found.path)

    def clear_leftovers(self) -> list[int]:
        """Removes what a kill left half-done, and puts back a checkpoint that only made way; gives the steps put back.

        Nothing else may be writing checkpoints meanwhile.
        """
        put_back = [step for path in self.folder.glob(".old_*") if (step := self._put_back(path)) is not None]
        for path in [path for kind in ("tmp", "old", "gone") for path in self.folder.glob(f".{kind}_*")]:
            shutil.rmtree(path, ignore_errors=True)
        return put_back

    # --- folders -----------------------------------------------------------------------------------------------------

    def _place(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _aside(self, kind: str) -> Path:
        """A name of its own for a folder on its way."""
        return self.folder / f".{kind}_{uuid.uuid4().hex[:8]}"

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            make_folder(self.folder, self.folder.parent)  # a run that its user deleted stays away
            sync_folder(self.folder.parent)

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        """Renames a complete folder; one of the same name (damaged, or the same step again) makes way for it."""
        old = self._aside("old")
        if final.exists():
            os.replace(final, old)
        try:
            os.replace(temporary, final)
        except OSError:
            if old.exists():
                os.replace(old, final)
            raise
        sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _put_back(self, old: Path) -> int | None:
        """Undoes the first half of `_put_in_place` if a kill prevented the second; gives the step then."""
        try:
            step = read_json(old / MANIFEST)["step"]
            found = Checkpoint(step, self._place(step))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if self._problem(Checkpoint(step, old)) is not None or self._problem(found) is None:
            return None
        with contextlib.suppress(OSError):
            if found.path.exists():  # damaged: `old` is the only intact copy
                os.replace(found.path, self._aside("gone"))
            os.replace(old, found.path)
            sync_folder(self.folder)
            return found.step
        return None

    def _remove(self, folder: Path) -> None:
        """Deletes a checkpoint so that a kill on the way leaves no half of one: it is renamed first."""
        gone = self._aside("gone")
        with contextlib.suppress(OSError):  # a file of it is open elsewhere (Windows): the next pruning tries again
            os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)

    # --- damage ------------------------------------------------------------------------------------------------------

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


def _manifest_step(checkpoint: Checkpoint) -> object:
    """The step that a checkpoint's manifest says; None if it cannot be read."""
    try:
        return read_json(checkpoint.path / MANIFEST)["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _problem(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint, by its manifest."""
    try:
        manifest = read_json(checkpoint.path / MANIFEST)
        if manifest["step"] != checkpoint.step:
            return f"its manifest is of step {manifest['step']}"
        names = manifest["files"].keys()
        if STATE not in names or not any(name == LORA or name.startswith("lora_") for name in names):
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
