"""Runs as pages see them: all of them, one of them, its metrics and its log, and what is asked of one at work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ...trainer_core.api import (
    CONTINUE,
    PAUSE,
    REQUESTS,
    STOP,
    RunFolder,
    ask_run,
    checkpoint_facts,
    known_choice,
    log_of,
    read_settings,
    redacted,
    run_called,
    run_state,
    samples_of,
    series,
    settings_shown,
    told_in_log,
)
from ...trainer_core.errors import RunError
from .. import controls, host
from . import going_on
from .asked import Asked, Refused, Route
from .watcher import Watcher

_POINTS = 1000
_MOST_POINTS = 20_000


def _here() -> Callable[[str], dict[str, Any]]:
    """What this server knows of runs, at one moment."""
    queued = dict(going_on.waiting())

    def here(name: str) -> dict[str, Any]:
        found = controls.at_work(name)
        return {
            "here": found is not None,
            "node": found.node if found else None,
            "prompt_id": found.prompt_id if found else queued.get(name),
            "workflow": host.workflow_of(found.prompt_id) if found else None,
            "goes_on": going_on.goes_on(name) or name in queued,
        }

    return here


WATCHER = Watcher(host.runs_root(), _here, host.pages_connected, host.send_to_pages)


def run_of(asked: Asked) -> RunFolder:
    """The run that a request names.

    Raises:
        Refused: if there is none.
    """
    try:
        return run_called(asked.parts["run"], host.runs_root())
    except RunError as error:
        raise Refused(404, str(error)) from None


def _run(asked: Asked) -> Any:
    run = run_of(asked)
    summary = WATCHER.run(run.name)
    if summary is None:
        raise Refused(404, f"there is no run {run.name!r} any more")
    text, settings = read_settings(run.path)
    warnings, phase = told_in_log(run)
    choice = known_choice(run)
    return {
        **summary,
        "job": redacted(text),
        "settings": settings_shown(settings),
        "checkpoints": [asdict(one) for one in checkpoint_facts(run, run.metrics())],
        "samples": _listed_samples(run),
        "phase": phase if summary["owner"] is not None else None,
        "messages": warnings,
        "choice": asdict(choice) if choice else None,
    }


def _metrics(asked: Asked) -> Any:
    points = max(4, asked.number("points", _POINTS, _MOST_POINTS))
    after = asked.number("after", 0) if "after" in asked.query else -1
    return series(run_of(asked).metrics(), after, points)


def _log(asked: Asked) -> Any:
    text, size = log_of(run_of(asked), asked.number("after", 0))
    return {"text": text, "size": size}


def _samples(asked: Asked) -> Any:
    after = asked.number("after", 0) if "after" in asked.query else -1
    return {"samples": _listed_samples(run_of(asked), after)}


def _listed_samples(run: RunFolder, after: int = -1) -> list[dict[str, Any]]:
    return [{"step": step, "items": [asdict(one) for one in items]} for step, items in samples_of(run, after)]


def _checkpoints(asked: Asked) -> Any:
    run = run_of(asked)
    return {"checkpoints": [asdict(one) for one in checkpoint_facts(run, run.metrics())]}


def _request(asked: Asked) -> Any:
    wish = asked.fields({"request": str}, {"go_on": bool})
    word = wish["request"]
    if word not in REQUESTS:
        raise Refused(400, f"no such request; there are: {', '.join(REQUESTS)}")
    run = run_of(asked)
    if word in (STOP, CONTINUE):
        going_on.forget(run.name)
    if controls.ask_here(run.name, word):
        if wish.get("go_on") and word == PAUSE:
            going_on.later(run.name)
    else:
        state = run_state(run)
        if state.owner is None:
            raise Refused(409, f"nobody works on {run.name}, it is {state}")
        ask_run(run.path, word)
    return {"run": run.name, "request": word}


ROUTES = [
    Route("GET", "runs", lambda _: WATCHER.runs()),
    Route("GET", "runs/{run}", _run),
    Route("GET", "runs/{run}/metrics", _metrics),
    Route("GET", "runs/{run}/log", _log),
    Route("GET", "runs/{run}/samples", _samples),
    Route("GET", "runs/{run}/checkpoints", _checkpoints),
    Route("POST", "runs/{run}/request", _request),
]
