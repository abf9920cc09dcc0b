"""What the buttons under Train LoRA ask of the run that trains there: pause, save now, draw previews now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..trainer_core.api import PAUSE, SAMPLE, SAVE, TrainingJob
from .routes.asked import Refused

_lock = threading.Lock()
_at_work: dict[str, TrainingJob] = {}
"""By the run's name. A request names a run and never a path: what is not in here cannot be reached."""


@contextmanager
def reachable(training: TrainingJob) -> Iterator[None]:
    """Lets requests reach a training for a while."""
    with _lock:
        _at_work[training.run.name] = training
    try:
        yield
    finally:
        with _lock:
            del _at_work[training.run.name]


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
    with _lock:
        training = _at_work.get(name)
    if training is None:
        raise Refused(404, "no run of this name is training in this ComfyUI")
    if request == PAUSE:
        training.pause(leave=True)
    elif request == SAVE:
        training.save_now()
    else:
        training.sample_now()
    return {"run": name, "request": request}
