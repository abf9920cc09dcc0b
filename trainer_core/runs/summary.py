"""All runs of a folder, each in a few facts, for pages that show hundreds of them and are told what changes.

Files are read again only if their times or sizes have changed; who works on a run is asked only where somebody may.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.yaml_text import LIMIT, read_yaml
from ..reading import read_regular
from ..roots import is_below
from ..secrets import redacted
from .find import is_run_name, linked
from .metrics import is_number, tail_of
from .queue import queue_marks, queue_places
from .run_folder import RunFolder
from .status import run_state

_FILES = ("run.json", "job.yaml", "metrics.jsonl", "owner.json", "checkpoints")
_HEAD = 64
"""Bytes of log.txt: its first line's time."""
_LONGEST = 2000
"""Letters of an error; the log has it whole."""

Mark = tuple[int, int] | None


@dataclass(frozen=True)
class RunSummary:
    """A run in a few facts; times in seconds since 1970."""

    name: str
    state: str
    """queued, running, paused, stopped, finished or failed"""
    crashed: bool = False
    step: int = 0
    steps: int = 0
    error: str | None = None
    updated: float = 0.0
    created: float = 0.0
    owner: str | None = None
    """Who works on it now."""
    resumable: bool = False
    eta_seconds: float | None = None
    seconds_per_step: float | None = None
    loss: float | None = None
    """The last that was logged."""
    device: str | None = None
    place: int | None = None
    """In its device's queue, from 1."""
    family: str | None = None
    base: str | None = None
    """What its base is called: a repository, the name of a file or folder."""
    trigger: str | None = None
    previews: bool = False


@dataclass
class _Known:
    """What is known of a run, and which files it was read of."""

    run: RunFolder
    inode: int
    created: float
    files: tuple[str, ...]
    marks: tuple[Mark, ...] = ()
    job: dict[str, Any] = field(default_factory=dict)
    summary: RunSummary | None = None


class RunList:
    """The runs of a folder; any thread may look."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, _Known] = {}
        self._queues: tuple[Mark, ...] | None = None
        self._places: dict[Path, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def look(self) -> dict[str, RunSummary]:
        """All runs by name. What cannot be read of a damaged one is left open; what is no run is left out."""
        with self._lock:
            self._look_at_queues()
            known, self._known = self._known, {}
            for name, inode in self._folders():
                before = known.get(name)
                with contextlib.suppress(OSError):  # it disappears while we look
                    now = before if before and before.inode == inode else self._new(name, inode)
                    if now and self._read(now):
                        self._known[name] = now
            return {name: one.summary for name, one in self._known.items() if one.summary}

    def _folders(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.folder) as found:
                for entry in found:
                    with contextlib.suppress(OSError):
                        if is_run_name(entry.name) and entry.is_dir(follow_symlinks=False):
                            yield entry.name, entry.inode()
        except OSError:  # no such folder yet
            return

    def _new(self, name: str, inode: int) -> _Known | None:
        path = self.folder / name
        if not is_below(path, self.folder):  # a junction, which Windows does not call a link
            return None
        real = path.resolve()
        return _Known(RunFolder(real), inode, _created(path), tuple(str(real / file) for file in _FILES))

    def _read(self, known: _Known) -> bool:
        """Brings what is known up to date; whether the folder is a run."""
        path, before = known.run.path, known.summary
        marks = tuple(_mark(file) for file in known.files)
        place, key = self._places.get(path, (None, None))
        same = marks == known.marks and before is not None and before.place == place
        if same and before and before.owner is None and marks[3] is None:
            return True
        if marks[0] is None and not RunFolder.is_one(path):
            return False
        if problem := linked(path):
            known.marks, known.summary = marks, _unread(known, problem)
            return True
        if not known.marks or marks[1] != known.marks[1]:
            known.job = _job_facts(path)
        known.marks = marks
        try:
            known.summary = _summary(known, place, key)
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one run, the others are told
            known.summary = _unread(known, f"its folder cannot be read ({type(error).__name__}: {error})")
        return True

    def _look_at_queues(self) -> None:
        marks = queue_marks()
        if marks != self._queues:
            self._queues, self._places = marks, queue_places()


def _summary(known: _Known, place: int | None, key: str | None) -> RunSummary:
    run, job = known.run, known.job
    state = run_state(run)
    lines = [line for line in tail_of(run.path) if "loss" in line]
    pace = [line["seconds_per_step"] for line in lines if is_number(line.get("seconds_per_step"))]
    each = finite(sum(pace) / len(pace)) if pace else None
    at_work = state.owner is not None and state.state == "running"
    owner = None
    if state.owner is not None:
        owner = f"process {state.owner.pid} on {state.owner.host}" if state.owner.pid else "another process"
    return RunSummary(
        name=run.name,
        state=state.state,
        crashed=state.crashed,
        step=state.step,
        steps=state.steps,
        error=state.error and redacted(state.error)[:_LONGEST],
        updated=state.updated,
        created=min(known.created, state.updated or math.inf),
        owner=owner,
        resumable=state.resumable,
        eta_seconds=each * max(0, state.steps - state.step) if at_work and each is not None else None,
        seconds_per_step=each,
        loss=finite(lines[-1]["loss"]) if lines else None,
        device=job.get("device") or key,
        place=place,
        family=job.get("family"),
        base=job.get("base"),
        trigger=job.get("trigger"),
        previews=bool(job.get("previews")),
    )


def _unread(known: _Known, problem: str) -> RunSummary:
    """A run of which nothing is told but why."""
    error = redacted(problem)[:_LONGEST]
    return RunSummary(known.run.name, "stopped", error=error, updated=known.created, created=known.created)


def finite(value: float) -> float | None:
    """A number as JSON can tell it; None for NaN and infinities."""
    return value if math.isfinite(value) else None


def read_settings(run: Path) -> tuple[str, dict[str, Any]]:
    """The text of a run's job.yaml and what is in it, unchecked; empty where it cannot be read."""
    try:
        text = read_regular(run / "job.yaml", LIMIT).decode("utf-8-sig", "replace")
    except OSError:
        return "", {}
    with contextlib.suppress(ValueError):
        settings = read_yaml(text, quickly=True)
        return text, settings if isinstance(settings, dict) else {}
    return text, {}


def section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of unchecked settings."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _job_facts(run: Path) -> dict[str, Any]:
    settings = read_settings(run)[1]
    model = section(settings, "model")
    datasets = settings.get("datasets")
    triggers = [settings, *(datasets if isinstance(datasets, list) else ())]
    device = _text(model.get("device"))
    return {
        "family": _text(model.get("family")),
        "base": base_name(_text(model.get("source"))),
        "device": device if device != "auto" else None,
        "trigger": next(
            (one["trigger"] for one in triggers if isinstance(one, dict) and _text(one.get("trigger"))), None
        ),
        "previews": section(settings, "sample").get("prompts"),
    }


def base_name(source: str | None) -> str | None:
    """What a base is called: a repository's id as it is, of a path its last part."""
    if source is None or (not any(source.startswith(start) for start in ("/", "\\", "~")) and source[1:2] != ":"):
        return source
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _text(value: object) -> str | None:
    return value[:300] if isinstance(value, str) and value else None


def _mark(file: str) -> Mark:
    """What changes when a file does. Paths are texts here, as there are a thousand of them each second."""
    try:
        status = os.lstat(file)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


def _created(run: Path) -> float:
    """When a run was made: no system tells it of a folder alike, so the earliest that its files know."""
    times = []
    for name in ("job.yaml", "run.json"):
        with contextlib.suppress(OSError):
            times.append((run / name).stat().st_mtime)
    with contextlib.suppress(OSError, ValueError, OverflowError):
        with (run / "log.txt").open("rb") as file:
            first = file.read(_HEAD).decode("ascii", "replace")
        times.append(time.mktime(time.strptime(first[:19], "%Y-%m-%d %H:%M:%S")))
    return min(times, default=0.0)
