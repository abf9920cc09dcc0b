"""What is new of a run at work since the last look, whichever process trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .details import told_in_log
from .metrics import parse_line
from .run_folder import RunFolder
from .series import series

_BLOCK = 1 << 20
"""Bytes of metrics that are told at once; more means that they are read anew."""


class RunNews:
    """Looks at a run's folder; what was there at the first look is known."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._metrics = run.path / "metrics.jsonl"
        self._read = _size(self._metrics)
        self._marks = self._all_marks()
        self._phase = told_in_log(run)[1]

    def look(self) -> dict[str, Any]:
        """What changed, by name: `steps` and `series` as of `series`, `reload` where lines were taken back, `phase`.

        `samples` and `checkpoints` say only that there are others.
        """
        found = self._new_points()
        marks = self._all_marks()
        for name, before in self._marks.items():
            if marks[name] != before:
                found[name] = True
        self._marks = marks
        phase = told_in_log(self._run)[1]
        if phase != self._phase:
            self._phase = found["phase"] = phase
        return found

    def _new_points(self) -> dict[str, Any]:
        size = _size(self._metrics)
        if size == self._read:
            return {}
        if not self._read < size <= self._read + _BLOCK:
            self._read = size
            return {"reload": True}
        try:
            with self._metrics.open("rb") as file:
                file.seek(self._read)
                data = file.read(size - self._read)
        except OSError:
            return {}
        data = data[: data.rfind(b"\n") + 1]  # a line that is being written is told when it is whole
        self._read += len(data)
        lines = [parse_line(line) for line in data.decode(errors="replace").split("\n") if line]
        told = series([line for line in lines if line is not None])
        return {"steps": told["steps"], "series": told["series"]} if told["series"] else {}

    def _all_marks(self) -> dict[str, Any]:
        return {name: _newest(self._run.path / name) for name in ("samples", "checkpoints")}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _newest(folder: Path) -> tuple[int, str, int] | None:
    """What changes when a folder of steps gets another one, or its last one another file."""
    try:
        last = max((one.name for one in folder.iterdir() if one.name.startswith("step_")), default="")
        return folder.stat().st_mtime_ns, last, (folder / last).stat().st_mtime_ns
    except OSError:
        return None
