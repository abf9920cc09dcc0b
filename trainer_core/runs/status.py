"""A run's state as a reader should see it: what run.json says, checked against who works on the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .metrics import tail_of
from .run_folder import RunFolder
from .run_lock import Owner, owner_of, was_abandoned

_RESUMABLE = {"queued", "paused", "stopped", "failed"}


@dataclass(frozen=True)
class RunState:
    """How a run is doing; `updated` in seconds since 1970."""

    state: str
    """queued, running, paused, stopped, finished or failed"""
    step: int
    steps: int
    error: str | None
    updated: float
    crashed: bool = False
    """It is stopped because its process died."""
    owner: Owner | None = None
    """Who works on it now."""

    @property
    def resumable(self) -> bool:
        """Whether `resume` can go on with it."""
        return self.state in _RESUMABLE and self.owner is None

    def __str__(self) -> str:
        return f"{self.state} (crashed)" if self.crashed else self.state


def run_state(run: RunFolder) -> RunState:
    """The state of a run. A run that says it is at work while nobody works on it is `stopped (crashed)`.

    The step of a run at work is the last that it logged, otherwise the last that was saved.
    """
    told = run.status()
    while True:
        owner = owner_of(run.path)
        again = run.status()
        if again == told:
            break
        told = again  # it changed in between, so who worked on it may have as well
    state, step = told["state"], told["step"]
    if owner is not None and state == "running":
        step = max(step, _last_logged(run.path))
    # a paused run may well have no process: it was left on purpose, unless its last owner died
    crashed = owner is None and (state == "running" or (state == "paused" and was_abandoned(run.path)))
    return RunState(
        "stopped" if crashed else state, step, told["steps"], told["error"], told["updated"], crashed, owner
    )


def _last_logged(run: Path) -> int:
    """The step of the last whole line of metrics; 0 if there is none."""
    return max((line["step"] for line in tail_of(run)[-1:] if 0 <= line["step"] < 2**53), default=0)
