"""What the buttons under Train LoRA ask of the run that trains there: pause, save now, draw previews now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..trainer_core.api import PAUSE, SAMPLE, SAVE, STOP, TrainingJob
from .routes.asked import Refused


@dataclass(frozen=True)
class AtWork:
    """A training of this server, and the execution id of the node and the id of the prompt that wait for it."""

    training: TrainingJob
    node: str | None = None
    prompt_id: str | None = None


_lock = threading.Lock()
_at_work: dict[str, AtWork] = {}
"""By the run's name. A request names a run and never a path: what is not in here cannot be reached."""


@contextmanager
def reachable(training: TrainingJob, node: str | None = None, prompt_id: str | None = None) -> Iterator[None]:
    """Lets requests reach a training for a while."""
    with _lock:
        _at_work[training.run.name] = AtWork(training, node, prompt_id)
    try:
        yield
    finally:
        with _lock:
            del _at_work[training.run.name]


def at_work(name: str) -> AtWork | None:
    """The training of a run here."""
    with _lock:
        return _at_work.get(name)


def tell(body: Any) -> dict[str, str]:
    """Does what a request's body asks: `{"run": name, "request": "pause", "save" or "sample"}`.

    Raises:
        Refused: if it cannot be done.
    """
    if not isinstance(body, dict) or body.keys() != {"run", "request"}:
        raise Refused(400, 'send {"run": name, "request": word}')
    name, request = body["run"], body["request"]
    if not isinstance(name, str) or not isinstance(request, str):
        raise Refused(400, "run and request must be texts")
    if request not in (PAUSE, SAVE, SAMPLE):
        raise Refused(400, f"no such request; there are: {PAUSE}, {SAVE}, {SAMPLE}")
    if not ask_here(name, request):
        raise Refused(404, "no run of this name is training in this ComfyUI")
    return {"run": name, "request": request}


def ask_here(name: str, request: str) -> bool:
    """Asks something of a run that trains here; whether there is one.

    A pause ends its prompt, so that other graphs can run.
    """
    found = at_work(name)
    if found is None:
        return False
    training = found.training
    if request == PAUSE:
        training.pause(leave=True)
    elif request == SAVE:
        training.save_now()
    elif request == SAMPLE:
        training.sample_now()
    elif request == STOP:
        training.stop()
    else:
        training.go_on()
    return True
