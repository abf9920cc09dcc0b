"""Runs as a user names them, by a name under the runs folder or by their folder; those there are; those that wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ..config import plain_name
from ..errors import RunError
from ..reading import is_file, leads_away
from ..roots import is_below
from .checkpoints import Checkpoint
from .queue import DeviceQueue, Waiting, queues
from .run_folder import RunFolder
from .status import run_state

_LONGEST_NAME = 110
"""Letters: a job's name and what is put behind it where that is taken."""


def runs_in(folder: Path) -> list[RunFolder]:
    """The runs of a folder by name; none if there is no such folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [RunFolder.open(path) for path in paths if RunFolder.is_one(path)]


def is_run_name(name: str) -> bool:
    """Whether a text can be the name of a run's folder, on every system and without leading anywhere else."""
    try:
        return plain_name(name[:100]) == name[:100] and len(name) <= _LONGEST_NAME
    except ValueError:
        return False


def run_called(name: str, runs: Path) -> RunFolder:
    """The run of that name right under a runs folder, for requests: a name is never taken for a path.

    Raises:
        RunError: if there is none, or it holds links, which could lead anywhere.
    """
    there = is_run_name(name) and name in (entry.name for entry in _entries(runs))
    path = runs / name if there else None
    if path is None or leads_away(path) or not is_below(path, runs) or not RunFolder.is_one(path):
        raise RunError(f"there is no run {name!r:.120}")
    if problem := linked(path):
        raise RunError(f"{name}: {problem}")
    return RunFolder.open(path)


def free_name(folder: Path, name: str) -> str:
    """A name that nothing in a folder has: this one, or with `_2`, `_3` … behind it."""
    names = (name, *(f"{name}_{number}" for number in range(2, 100_000)))
    return next(one for one in names if not os.path.lexists(folder / one))


def linked(run: Path) -> str | None:
    """What is wrong with a run's folder for requests, which follow no links; None if nothing is."""
    for entry in _entries(run):
        with contextlib.suppress(OSError):  # gone meanwhile
            if leads_away(entry):
                return f"its folder holds a link ({entry.name}), and pages are shown nothing that links lead to"
            if not entry.is_dir() and not entry.is_file():
                return f"its folder holds what is no file ({entry.name})"
    return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        return list(found)
    return []


def find_run(name: str, runs: Path) -> RunFolder:
    """A run by its name under the runs folder, or by its folder.

    Raises:
        RunError: if neither is there; the message lists what is.
    """
    for path in _paths(name, runs):
        if RunFolder.is_one(path):
            return RunFolder.open(path)
    there = [run.name for run in runs_in(runs)]
    hint = f"{runs} holds: {', '.join(there)}" if there else f"{runs} holds no runs; --runs names another folder"
    raise RunError(f"no run {name!r}: {hint}")


def find_run_or_file(name: str, runs: Path) -> RunFolder | Path:
    """The run or the file that a user names.

    Raises:
        RunError: if there is neither.
    """
    found = next((path for path in _paths(name, runs) if is_file(path) or RunFolder.is_one(path)), None)
    return found if found and is_file(found) else find_run(name, runs)


def find_checkpoint(run: RunFolder, which: str | int = "latest") -> Checkpoint:
    """An intact checkpoint of a run: that of a step, the "best" by validation, or the "latest".

    Raises:
        RunError: if there is none; the message says what there is.
    """
    steps = {found.step: found for found in run.checkpoints()}
    if not steps:
        raise RunError(f"{run.path}: has no intact checkpoint yet, so there is no LoRA")
    if which == "latest":
        return steps[max(steps)]
    there = f"there are: {', '.join(map(str, sorted(steps)))}"
    if which == "best":
        best = run.best()
        if best is None:
            raise RunError(f"{run.path}: no checkpoint was validated, so none is known to be the best; {there}")
        return best
    if which not in steps:
        raise RunError(f"{run.path}: has no checkpoint of step {which}; {there}")
    return steps[int(which)]


def find_waiting(name: str, runs: Path) -> tuple[DeviceQueue, Waiting]:
    """A run in a queue, by its name under the runs folder or anywhere, or by its folder.

    Raises:
        RunError: if there is none, or several of that name.
        SaveError: if a queue cannot be read.
    """
    waiting = [(queue, one) for queue in queues() for one in queue.tickets()]
    for path in _paths(name, runs):
        if found := [pair for pair in waiting if pair[1].run == path.resolve()]:
            break
    else:
        found = [pair for pair in waiting if pair[1].run.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(f"several runs {name!r} wait, give the folder: {', '.join(str(one.run) for _, one in found)}")
    raise RunError(f"no run {name!r} waits; these do: {', '.join(one.run.name for _, one in waiting) or 'none'}")


def waiting_alone(tried: Collection[Path] = ()) -> Iterator[tuple[DeviceQueue, Waiting, str | None]]:
    """The runs that wait and that nobody works on, in order, each with why it cannot be gone on with, if it cannot.

    Args:
        tried: runs to leave out.

    Raises:
        SaveError: if a queue cannot be read.
    """
    for queue in queues():
        for one in queue.tickets():
            if one.live or one.run in tried:
                continue
            if not RunFolder.is_one(one.run):
                yield queue, one, "gone"
                continue
            state = run_state(RunFolder.open(one.run))
            if state.owner is None:
                yield queue, one, None if state.resumable else str(state)


def _paths(name: str, runs: Path) -> list[Path]:
    """Where a run may be that a user names, the likeliest first: a bare name is one under the runs folder.

    Raises:
        RunError: for an empty name, which as a path would be the current folder.
    """
    if not name.strip():
        raise RunError("the run's name is empty: give its name under --runs, or its folder")
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # the home of a user that there is not
        path = Path(name)
    is_bare = Path(name).name == name and name not in ("..", "~")
    return [runs / name, path] if is_bare else [path]
