"""Runs get another name, go to the trash, and come back. A run that somebody works on stays where it is."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from ..config import plain_name
from ..errors import ConfigError, FoundryError, RunError, SaveError
from ..files import save_error
from ..reading import leads_away
from .find import free_name, is_run_name
from .queue import queues
from .run_folder import RunFolder
from .run_lock import RunLock

TRASH = ".trash"
_TRASHED = re.compile(r"(?P<name>.+)-(?P<time>\d{8}-\d{6})(?:_\d+)?", re.ASCII)


@dataclass(frozen=True)
class Trashed:
    """A run in the trash; `deleted` in seconds since 1970."""

    id: str
    """Its folder's name."""
    name: str
    deleted: float


def rename_run(run: RunFolder, name: str) -> RunFolder:
    """Gives a run, its folder and its job another name; its place in the queue stays.

    Raises:
        ConfigError: for a name that cannot be a file's.
        RunError: if the name is taken, or somebody works on the run.
        SaveError: if it cannot be moved; then it is as it was.
    """
    try:
        fresh = plain_name(name)
    except ValueError as error:
        raise ConfigError(f"name: {error}") from None
    target = run.path.with_name(fresh)
    if fresh == run.name:
        return run
    if os.path.lexists(target) and not _same(run.path, target):
        raise RunError(f"there is a run {fresh!r} already. Choose another name")
    moved = _moved(run.path, target)
    with contextlib.suppress(ConfigError):  # a job that cannot be read keeps its name
        moved.write_job(moved.job().but(name=fresh))
    return moved


def trash_run(run: RunFolder) -> Trashed:
    """Moves a run into the trash of its runs folder, and out of its queue.

    Raises:
        RunError: if somebody works on it.
        SaveError: if it cannot be moved.
    """
    trash = run.path.parent / TRASH
    try:
        trash.mkdir(exist_ok=True)
        if leads_away(trash):
            raise SaveError(f"{trash}: is a link; remove it, so that what is deleted stays here")
    except OSError as error:
        raise save_error(trash, error) from error
    fresh = free_name(trash, f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    moved = _moved(run.path, trash / fresh)
    return Trashed(moved.name, run.name, time.time())


def trashed_in(runs: Path) -> list[Trashed]:
    """What is in the trash of a runs folder, the latest first."""
    found = []
    with contextlib.suppress(OSError):
        for path in (runs / TRASH).iterdir():
            match = _TRASHED.fullmatch(path.name)
            with contextlib.suppress(OSError, ValueError, OverflowError):
                if match and is_run_name(match["name"]) and not leads_away(path) and path.is_dir():
                    deleted = time.mktime(time.strptime(match["time"], "%Y%m%d-%H%M%S"))
                    found.append(Trashed(path.name, match["name"], deleted))
    return sorted(found, key=lambda one: (one.deleted, one.id), reverse=True)


def restore_run(runs: Path, name: str) -> RunFolder:
    """Brings a run back from the trash, under its name or, where that is taken, with a number.

    Args:
        name: the run's, which means the latest of that name, or its `id` in the trash.

    Raises:
        RunError: if there is none.
        SaveError: if it cannot be moved.
    """
    there = trashed_in(runs)
    found = next((one for one in there if name in (one.id, one.name)), None)
    if found is None:
        told = ", ".join(dict.fromkeys(one.name for one in there[:20])) or "nothing"
        raise RunError(f"the trash holds no run {name!r:.120}; it holds: {told}")
    return _moved(runs / TRASH / found.id, runs / free_name(runs, found.name))


def _moved(source: Path, target: Path) -> RunFolder:
    """Moves a run's folder that nobody works on, with its place in queues; one in the trash has none."""
    with RunLock(source):
        pass  # a folder that holds an open file cannot be moved on every system, so the lock is not kept
    place = source.resolve()
    try:
        source.rename(target)
    except OSError as error:
        raise save_error(source, error) from error
    for queue in queues():
        with contextlib.suppress(FoundryError), queue.alone() as order:
            for one in [one for one in order if one.run == place]:
                if target.parent.name == TRASH:
                    order.remove(one)
                else:
                    one.run = target.resolve()
    return RunFolder(target.resolve())


def _same(one: Path, other: Path) -> bool:
    """Whether two names are the same folder's, where case makes no difference."""
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return False
