"""`runs`, `tell`, `pin`, `rename`, `delete` and `restore`: the runs there are, and what becomes of one."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..api import (
    TRASH,
    RunFolder,
    RunState,
    ask_run,
    find_run,
    queue_places,
    redacted,
    rename_run,
    restore_run,
    run_state,
    runs_in,
    trash_run,
)
from ..errors import RunError, RunHeld, SaveError
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
    places = {run: place for run, (place, _) in queue_places(_warn).items()}
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
    run = find_run(args.run, args.runs)
    state = run_state(run)
    if state.owner is None:
        more = f". To go on with it: {command_for('resume', run, args.runs)}" if state.resumable else ""
        raise RunError(f"nobody works on {run.path}, it is {state}{more}")
    ask_run(run.path, args.request)
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


def rename(args: argparse.Namespace) -> int:
    """Gives a run another name."""
    run = find_run(args.run, args.runs)
    say(f"{run.name} is called {rename_run(run, args.name).name} now")
    return OK


def delete(args: argparse.Namespace) -> int:
    """Moves a run to the trash."""
    run = find_run(args.run, args.runs)
    trash_run(run)
    say(f"{run.name} is in {run.path.parent / TRASH}; to bring it back: {command_for('restore', run, args.runs)}")
    return OK


def restore(args: argparse.Namespace) -> int:
    """Brings a run back from the trash."""
    say(f"{args.run} is back as {restore_run(args.runs, args.run).path}")
    return OK


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


def _warn(error: SaveError) -> None:
    say(f"warning: {error}", sys.stderr)
