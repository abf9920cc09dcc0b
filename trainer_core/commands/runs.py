"""`runs`, `tell` and `pin`: the runs there are, and what is asked of one while it runs."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import RunError, RunHeld, SaveError
from ..reading import is_file
from ..runs.run_folder import RunFolder
from ..runs.status import RunState, run_state
from ..secrets import redacted
from . import OK
from .terminal import print_json, print_table, say


def runs(args: argparse.Namespace) -> int:
    """All runs of the runs folder, the latest first."""
    found = []
    for run in runs_in(args.runs):
        try:
            found.append((run, run_state(run)))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one run, the others are told
            say(f"warning: {run.path} cannot be read: {type(error).__name__}: {redacted(str(error))}", sys.stderr)
    found.sort(key=lambda one: one[1].updated, reverse=True)
    places = _places()
    if args.json:
        print_json([as_dict(run.path, state) | {"place": places.get(run.path)} for run, state in found])
    elif found:
        print_table(
            ("run", "state", "step", "updated", "in the queue"),
            (
                (run.name, state, f"{state.step}/{state.steps}", moment(state.updated), places.get(run.path))
                for run, state in found
            ),
        )
    else:
        say(f"{args.runs} holds no runs; --runs names another folder")
    return OK


def tell(args: argparse.Namespace) -> int:
    """Asks something of the process that works on a run."""
    from ..runs.requests import ask

    run = find_run(args.run, args.runs)
    state = run_state(run)
    if state.owner is None:
        more = f". To go on with it: {command_for('resume', run, args.runs)}" if state.resumable else ""
        raise RunError(f"nobody works on {run.path}, it is {state}{more}")
    ask(run.path, args.request)
    say(f"asked {state.owner} to {_SENTENCES[args.request].format(run.name)}")
    return OK


_SENTENCES = {
    "stop": "save and stop {}",
    "pause": "save and pause {}",
    "continue": "go on with {}",
    "save": "save {}",
    "sample": "draw previews of {}",
}


def pin(args: argparse.Namespace) -> int:
    """Keeps a checkpoint for good, or no longer."""
    run = find_run(args.run, args.runs)
    if args.remove:
        run.unpin(args.step)
    else:
        run.pin(args.step)
    say(f"pinned steps of {run.name}: {', '.join(map(str, sorted(run.pinned()))) or 'none'}")
    return OK


def find_run(name: str, runs: Path) -> RunFolder:
    """A run by its name under the runs folder, or by its folder.

    Raises:
        RunError: if neither is there; the message lists what is.
    """
    for path in run_paths(name, runs):
        if RunFolder.is_one(path):
            return RunFolder.open(path)
    there = [run.name for run in runs_in(runs)]
    hint = f"{runs} holds: {', '.join(there)}" if there else f"{runs} holds no runs; --runs names another folder"
    raise RunError(f"no run {name!r}: {hint}")


def run_paths(name: str, runs: Path) -> list[Path]:
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


def find_lora(name: str, runs: Path) -> Path | RunFolder:
    """The LoRA file or the run that a user names.

    Raises:
        RunError: if there is neither.
    """
    found = next((path for path in run_paths(name, runs) if is_file(path) or RunFolder.is_one(path)), None)
    return found if found and is_file(found) else find_run(name, runs)


def runs_in(folder: Path) -> list[RunFolder]:
    """The runs of a folder by name; none if there is no such folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [RunFolder.open(path) for path in paths if RunFolder.is_one(path)]


def check_free(run: RunFolder, state: RunState, runs: Path) -> None:
    """Refuses a run that somebody works on.

    Raises:
        RunHeld: saying who, and what can be done.
    """
    if state.owner is None:
        return
    way = "continue" if state.state == "paused" else "stop"
    raise RunHeld(
        f"{state.owner} works on {run.path}, it is {state}. "
        f"{'It goes on' if way == 'continue' else 'To stop it'}: {command_for('tell', run, runs, way)}"
    )


def command_for(command: str, run: RunFolder, runs: Path, *words: str) -> str:
    """What to type for a run, quoted where its path has spaces."""
    name = run.name if runs == Path("runs") else str(run.path)
    return " ".join(["lora-foundry", command, f'"{name}"' if " " in name else name, *words])


def as_dict(path: Path, state: RunState) -> dict[str, Any]:
    """A run's state for JSON; times in seconds since 1970."""
    facts = asdict(state) | {"resumable": state.resumable}
    return {"name": path.name, "path": str(path), **facts}


def moment(seconds: float) -> str:
    """A time on this machine's clock; a question mark for one that no clock shows (files may say anything)."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"


def _places() -> dict[Path, int]:
    """The places of all runs in their devices' queues, counted from 1."""
    from ..runs.queue import queues

    places = {}
    for queue in queues():
        try:
            places.update({one.run: place for place, one in enumerate(queue.tickets(), start=1)})
        except SaveError as error:
            say(f"warning: {error}", sys.stderr)
    return places
