"""`queue` and what follows it: the runs that wait for a device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..api import (
    STOP,
    DeviceQueue,
    RunFolder,
    ask_run,
    find_waiting,
    queue_run,
    queues,
    redacted,
    resume_run,
    run_state,
    waiting_alone,
)
from ..config import load_job
from ..errors import FoundryError, RunError, RunHeld
from . import INTERRUPTED, OK
from .following import follow
from .runs import as_dict, moment
from .terminal import print_json, print_table, say


def show(args: argparse.Namespace) -> int:
    """All runs that wait, device by device, in order."""
    found = [(queue.key, place, one) for queue in queues() for place, one in enumerate(queue.tickets(), start=1)]
    if args.json:
        print_json(
            [
                {"device": key, "place": place, "queued_at": one.queued_at, "running": one.running, "live": one.live}
                | _facts(one.run)
                for key, place, one in found
            ]
        )
    elif found:
        print_table(
            ("place", "device", "run", "state", "in the queue since", "folder"),
            (
                (place, key, one.run.name, _state_of(one.run), moment(one.queued_at), one.run)
                for key, place, one in found
            ),
        )
    else:
        say("no run waits")
    return OK


def add(args: argparse.Namespace) -> int:
    """Makes a run of a job and gives it a place in the queue."""
    run, queue, place = queue_run(args.runs, load_job(args.job))
    say(f"run {run.path.resolve()} has place {place} in the queue of {queue.key}")
    say("To train all that wait: lora-foundry queue start")
    return OK


def start(args: argparse.Namespace) -> int:
    """Trains the runs that wait and have no process, one after the other, until there is none."""
    failed: list[str] = []
    tried: set[Path] = set()
    while (found := _next(tried)) is not None:
        queue, run = found
        tried.add(run.path)
        try:
            if follow(resume_run(run), args.runs).signalled:
                return INTERRUPTED
        except RunHeld as error:  # another process was quicker
            say(error)
            continue
        except Exception as error:  # noqa: BLE001 - whatever it was, the others still have their turn
            failed.append(run.name)
            told = str(error) if isinstance(error, FoundryError) else f"{type(error).__name__}: {error}"
            say(f"failed: {run.path}: {redacted(told)}", sys.stderr)
        with suppress(FoundryError):  # it has left already, unless it failed before it stood there
            queue.remove(run.path)
    if failed:
        raise RunError(f"{len(failed)} of {len(tried)} runs failed, see above: {', '.join(failed)}")
    if not tried:
        say("no run waits without a process")
    return OK


def move(args: argparse.Namespace) -> int:
    """Puts a run at another place in its queue."""
    queue, waiting = find_waiting(args.run, args.runs)
    queue.move(waiting.run, args.place)
    place = [one.run for one in queue.tickets()].index(waiting.run) + 1
    say(f"{waiting.run.name} has place {place} in the queue of {queue.key}")
    return OK


def remove(args: argparse.Namespace) -> int:
    """Takes a run out of its queue; its folder stays."""
    queue, waiting = find_waiting(args.run, args.runs)
    if waiting.live:
        ask_run(waiting.run, STOP)
        say(f"asked the process that stands in the queue for {waiting.run.name} to stop")
        return OK
    queue.remove(waiting.run)
    say(f"{waiting.run.name} is out of the queue; its folder stays: {waiting.run}")
    return OK


def _next(tried: Collection[Path]) -> tuple[DeviceQueue, RunFolder] | None:
    """The first run that nobody works on. What cannot be gone on with is taken out."""
    for queue, one, problem in waiting_alone(tried):
        if problem is None:
            return queue, RunFolder.open(one.run)
        say(f"{one.run} is {problem} and taken out of the queue")
        queue.remove(one.run)
    return None


def _state_of(run: Path) -> object:
    return run_state(RunFolder.open(run)) if RunFolder.is_one(run) else "gone"


def _facts(run: Path) -> dict[str, Any]:
    if RunFolder.is_one(run):
        return as_dict(run, run_state(RunFolder.open(run)))
    return {"name": run.name, "path": str(run), "state": "gone"}
