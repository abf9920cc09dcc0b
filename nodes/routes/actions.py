"""What a page does with a run: go on with it, name it, delete it and bring it back, keep and use its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from ...trainer_core.api import (
    RunFolder,
    changed_since,
    checkpoint_file,
    find_checkpoint,
    free_name,
    rename_run,
    restore_run,
    run_state,
    trash_run,
    trashed_in,
)
from ...trainer_core.errors import RunError, SaveError
from .. import host
from ..lora_files import note
from ..resume_run import AS_IT_WAS, AS_NEW_RUN, WITH_CHANGES
from ..save_checkpoint import saved_to_models
from . import going_on
from .asked import Asked, Refused, Route
from .file_manager import show
from .runs import WATCHER, run_of

T = TypeVar("T")
_LARGEST_STEP = 10_000_000


def _resume(asked: Asked) -> Any:
    accept = asked.fields({}, {"accept": bool}).get("accept")
    run = _at_rest(asked)
    if run_state(run).state == "finished" and accept is not False:
        raise Refused(409, f"{run.name} is finished. To train it further, give its graph more steps and queue that")
    job = host.checked_job(run.job())
    changed = changed_since(run) if accept is not False else []
    refused = [one.name for one in changed if not one.acceptable]
    if changed and (refused or not accept):
        raise Refused(
            409,
            f"since {run.name} stopped, this has changed: {', '.join(one.name for one in changed)}"
            + (f". It cannot go on with another {', '.join(refused)}" if refused else ""),
            changed=[asdict(one) for one in changed],
            new_name=free_name(host.runs_root(), job.name),
        )
    how = AS_NEW_RUN if accept is False else WITH_CHANGES if changed else AS_IT_WAS
    return {"queued": True, "prompt_id": going_on.queue(run.name, how)}


def _rename(asked: Asked) -> Any:
    name = asked.fields({"name": str})["name"]
    run = _at_rest(asked)
    going_on.forget(run.name)
    return {"name": _moved(lambda: rename_run(run, name)).name}


def _delete(asked: Asked) -> Any:
    asked.fields({})
    run = _at_rest(asked)
    going_on.forget(run.name)
    return {"trashed": _moved(lambda: trash_run(run)).id}


def _restore(asked: Asked) -> Any:
    asked.fields({})
    return {"name": _moved(lambda: restore_run(host.runs_root(), asked.parts["run"]), 404).name}


def _moved(move: Callable[[], T], status: int = 409) -> T:
    """What a move gives; pages are told of it at once."""
    try:
        found = move()
    except SaveError:
        raise
    except RunError as error:
        raise Refused(status, str(error)) from None
    WATCHER.runs()
    return found


def _at_rest(asked: Asked) -> RunFolder:
    """The run that a request names, if nobody works on it, nor is about to."""
    run = run_of(asked)
    if any(name == run.name for name, _ in going_on.waiting()):
        raise Refused(409, f"{run.name} is on ComfyUI's queue already; take it out there first")
    if (owner := run_state(run).owner) is not None:
        raise Refused(409, f"{owner} works on {run.name}. Stop it first, or wait for its end")
    return run


def _open(asked: Asked) -> Any:
    asked.fields({})
    if not asked.local:
        raise Refused(403, "a folder opens on ComfyUI's own computer, so only a browser there may ask for it")
    show(run_of(asked).path)
    return {"opened": True}


def _pin(asked: Asked) -> Any:
    wish = asked.fields({"step": int, "pinned": bool})
    run = run_of(asked)
    try:
        (run.pin if wish["pinned"] else run.unpin)(wish["step"])
    except RunError as error:
        raise Refused(404, str(error)) from None
    return {"pinned": sorted(run.pinned())}


def _use(asked: Asked) -> Any:
    wish = asked.fields({"step": int}, {"name": str})
    run, step = run_of(asked), wish["step"]
    if not 0 <= step <= _LARGEST_STEP:
        raise Refused(400, "step must be the step of a checkpoint")
    try:
        checkpoint = find_checkpoint(run, step)
        for path in checkpoint.loras:
            checkpoint_file(run, step, path.name)
    except RunError as error:
        raise Refused(404, str(error)) from None
    exported = saved_to_models(run.name, checkpoint, wish.get("name") or "")
    names = [one.name for one in exported]
    return {"lora_name": names[0], "lora_names": names, "notes": [told for one in exported for told in note(one.older)]}


ROUTES = [
    Route("GET", "trash", lambda _: {"trash": [asdict(one) for one in trashed_in(host.runs_root())]}),
    Route("POST", "runs/{run}/resume", _resume),
    Route("POST", "runs/{run}/rename", _rename),
    Route("POST", "runs/{run}/delete", _delete),
    Route("POST", "runs/{run}/restore", _restore),
    Route("POST", "runs/{run}/open", _open),
    Route("POST", "runs/{run}/pin", _pin),
    Route("POST", "runs/{run}/use", _use),
]
