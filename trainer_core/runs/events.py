"""What a run tells the world. The command line, the node and the web page listen to this one stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Something that happened; small and immutable."""


@dataclass(frozen=True)
class StateChanged(Event):
    """The run is now queued, running, paused, stopped, finished or failed."""

    state: str
    step: int
    steps: int
    error: str | None = None


@dataclass(frozen=True)
class Phase(Event):
    """Work that is not a training step, such as "encoding images", `done` of `total` parts of it."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class StepDone(Event):
    """An optimizer step was made: `step` updates so far."""

    step: int
    steps: int
    loss: float
    lr: float
    seconds_per_step: float
    eta_seconds: float
    peak_memory: int
    """bytes"""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Further terms of the objective by name, unweighted, such as `output_preservation`."""


@dataclass(frozen=True)
class Skipped(Event):
    """A batch was passed over because its loss or gradient was not finite; step `step` takes the next one."""

    step: int
    what: str
    """loss or gradient"""
    images: tuple[str, ...]


@dataclass(frozen=True)
class ValidationDone(Event):
    """The loss on held-out pictures after `step` updates."""

    step: int
    loss: float


@dataclass(frozen=True)
class SampleReady(Event):
    """A preview was drawn."""

    step: int
    path: Path
    """Of the picture; of a video its first frame."""
    prompt: str
    index: int
    clip: Path | None = None
    """The video, as an animated WebP."""


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint folder is complete and on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class RequestDone(Event):
    """What a user asked of the running job (`save` or `sample`) was done after `step` updates."""

    request: str
    step: int


@dataclass(frozen=True)
class MemoryPlanned(Event):
    """How the run is to fit into memory, or how well it did, in one line."""

    message: str


@dataclass(frozen=True)
class Warning(Event):
    """Something the user should know, though the run goes on."""

    message: str


Listener = Callable[[Event], None]


def log_line(event: Event) -> str:
    """An event as a line of log.txt."""
    if isinstance(event, StateChanged):
        return f"{event.state} at step {event.step} of {event.steps}" + (f": {event.error}" if event.error else "")
    if isinstance(event, Phase):
        return f"{event.what} ({event.done} of {event.total})"
    if isinstance(event, Skipped):
        return f"step {event.step}: a batch is passed over, its {event.what} is not finite ({', '.join(event.images)})"
    if isinstance(event, RequestDone):
        return f"{event.request} as asked, at step {event.step}"
    if isinstance(event, MemoryPlanned):
        return event.message
    return f"warning: {event.message}" if isinstance(event, Warning) else repr(event)
