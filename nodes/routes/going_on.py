"""Runs that go on by a prompt of ours: at once, or when the prompts that a pause made room for are done."""

from __future__ import annotations

import logging
import threading

from ...trainer_core.api import run_called, run_state
from ...trainer_core.errors import FoundryError
from .. import host
from ..resume_run import AS_IT_WAS, NODE_ID

_LOG = logging.getLogger(__name__)
_PATIENCE = 1.0
"""Seconds after which a prompt that a page sends is on the queue."""
_ON_THE_WAY = ("running", "paused")
"""A run that is being paused; it may have finished before, or have been stopped since."""
_lock = threading.Lock()
_later: set[str] = set()
"""Names of runs that wait for a prompt to come first."""


def queue(run: str, how: str, last: bool = False) -> str:
    """Puts a run on ComfyUI's queue; gives the prompt's id."""
    forget(run)
    return host.queue_prompt(NODE_ID, {"run": run, "how": how}, last)


def waiting() -> list[tuple[str, str]]:
    """The runs on ComfyUI's queue that are to go on, each with its prompt's id."""
    return [(str(inputs.get("run")), prompt_id) for inputs, prompt_id in host.queued_inputs(NODE_ID)]


def later(run: str) -> None:
    """Has a run that is being paused go on after all other prompts, those too that come while they are worked on.

    If none waits now, the first that comes is waited for: there was a reason to pause.
    """
    if host.prompts_wait():
        queue(run, AS_IT_WAS, last=True)
        return
    with _lock:
        _later.add(run)


def goes_on(run: str) -> bool:
    """Whether a run waits for a prompt to come first."""
    with _lock:
        return run in _later


def forget(run: str) -> None:
    """The user goes on with a run, or does away with it."""
    with _lock:
        _later.discard(run)


def _on_prompt() -> None:
    with _lock:
        runs = sorted(_later)
        _later.clear()
    if runs:
        threading.Timer(_PATIENCE, _queue_all, (runs,)).start()


def _queue_all(runs: list[str]) -> None:
    for run in runs:
        try:
            if run_state(run_called(run, host.runs_root())).state in _ON_THE_WAY:
                queue(run, AS_IT_WAS, last=True)
        except FoundryError as error:
            _LOG.warning("LoRA Foundry: %s does not go on by itself: %s", run, error)


def install() -> None:
    """To be called once."""
    host.on_prompt(_on_prompt)
