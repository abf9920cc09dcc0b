"""`queue` and what follows it: the runs that wait for a device."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config import load_job
from ..errors import FoundryError, RunError, RunHeld, SaveError
from ..job import TrainingJob
from ..runs.queue import DeviceQueue, Waiting, device_key, queues
from ..runs.requests import STOP, ask
from ..runs.run_folder import RunFolder
from ..runs.status import run_state
from ..secrets import redacted
from . import INTERRUPTED, OK
from .following import follow
from .runs import as_dict, moment, run_paths
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
    from ..families.device import pick_device

    job = load_job(args.job)
    path = TrainingJob.new(args.runs, job).run.path.resolve()
    queue = DeviceQueue(device_key(pick_device(job.model.device)))
    try:
        queue.add(path)
    except SaveError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    place = [one.run for one in queue.tickets()].index(path) + 1
    say(f"run {path} has place {place} in the queue of {queue.key}")
    say("To train all that wait: lora-foundry queue start")
    return OK


def start(args: argparse.Namespace) -> int:
    """Trains the runs that wait and have no process, one after the other, until there is none."""
    failed: list[str] = []
    tried: set[Path] = set()
    while (found := next(_left(tried), None)) is not None:
        queue, run = found
        tried.add(run.path)
        try:
            if follow(TrainingJob(run), args.runs).signalled:
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
    queue, waiting = _find(args.run, args.runs)
    queue.move(waiting.run, args.place)
    place = [one.run for one in queue.tickets()].index(waiting.run) + 1
    say(f"{waiting.run.name} has place {place} in the queue of {queue.key}")
    return OK


def remove(args: argparse.Namespace) -> int:
    """Takes a run out of its queue; its folder stays."""
    queue, waiting = _find(args.run, args.runs)
    if waiting.live:
        ask(waiting.run, STOP)
        say(f"asked the process that stands in the queue for {waiting.run.name} to stop")
        return OK
    queue.remove(waiting.run)
    say(f"{waiting.run.name} is out of the queue; its folder stays: {waiting.run}")
    return OK


def _left(tried: Collection[Path]) -> Iterator[tuple[DeviceQueue, RunFolder]]:
    """The runs that nobody works on, in order. What cannot be gone on with is taken out."""
    for queue in queues():
        for one in queue.tickets():
            if one.live or one.run in tried:
                continue
            if not RunFolder.is_one(one.run):
                say(f"{one.run} is gone and taken out of the queue")
                queue.remove(one.run)
                continue
            run = RunFolder.open(one.run)
            state = run_state(run)
            if state.resumable:
                yield queue, run
            elif state.owner is None:
                say(f"{one.run} is {state} and taken out of the queue")
                queue.remove(one.run)


def _find(name: str, runs: Path) -> tuple[DeviceQueue, Waiting]:
    """A run in a queue, by its name under the runs folder or anywhere, or by its folder.

    Raises:
        RunError: if there is none, or several of that name.
    """
    waiting = [(queue, one) for queue in queues() for one in queue.tickets()]
    for path in run_paths(name, runs):
        if found := [pair for pair in waiting if pair[1].run == path.resolve()]:
            break
    else:
        found = [pair for pair in waiting if pair[1].run.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(f"several runs {name!r} wait, give the folder: {', '.join(str(one.run) for _, one in found)}")
    raise RunError(f"no run {name!r} waits; these do: {', '.join(one.run.name for _, one in waiting) or 'none'}")


def _state_of(run: Path) -> object:
    return run_state(RunFolder.open(run)) if RunFolder.is_one(run) else "gone"


def _facts(run: Path) -> dict[str, Any]:
    if RunFolder.is_one(run):
        return as_dict(run, run_state(RunFolder.open(run)))
    return {"name": run.name, "path": str(run), "state": "gone"}
