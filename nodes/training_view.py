"""What a user sees of a run while it trains: a text, and the latest samples; the page draws its metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..trainer_core.api import (
    SAMPLE,
    SAVE,
    CheckpointSaved,
    Event,
    MemoryPlanned,
    Phase,
    RequestDone,
    SampleReady,
    Skipped,
    StateChanged,
    StepDone,
    ValidationDone,
    Warning,
    duration,
    size,
)
from .failures import in_widgets

_NAMED_IMAGES = 3
_LEFT = {
    "paused": "paused: queue the workflow again to go on",
    "stopped": "stopped: queue the workflow again to go on",
}
"""What is told of a state that the run is left in."""


@dataclass
class TrainingView:
    """The state of the display; `apply` folds events into it."""

    validations: list[ValidationDone] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    origin: str = ""
    """Which earlier run this one is, or why it is none of its name."""
    notes: list[str] = field(default_factory=list)
    """What the user may not have meant; stays to the end."""
    answered: dict[str, int] = field(default_factory=dict)
    """Request (`save`, `sample`) → the step at which it was last done."""
    state: str = ""
    """As in `StateChanged`; empty before the first."""
    step: int = 0
    steps: int = 0
    samples: list[Path] = field(default_factory=list)
    """Of the latest step that has any."""
    memory: str = ""
    """How the run fits into memory."""
    _sample_step: int = -1
    _phase: str = "starting"
    _last: StepDone | None = None
    _parts: dict[str, float] = field(default_factory=dict)
    """Latest value of each further term: not every step has all of them."""
    _saved: int | None = None
    _warnings: list[str] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        """Takes in one event."""
        if isinstance(event, StepDone):
            self.step, self.steps, self._last, self._phase = event.step, event.steps, event, ""
            self._parts |= event.parts
        elif isinstance(event, ValidationDone):
            self.validations.append(event)
            self._phase = self._training()
        elif isinstance(event, Phase):
            count = f" {event.done} of {event.total}" if event.total > 1 else ""
            self._phase = f"{event.what}{count}"
        elif isinstance(event, MemoryPlanned):
            self.memory = event.message
        elif isinstance(event, SampleReady):
            if event.step != self._sample_step:
                self._sample_step, self.samples = event.step, []
            self.samples.append(event.path)
            self._phase = self._training()
        elif isinstance(event, RequestDone):
            self.answered[event.request] = event.step
        elif isinstance(event, CheckpointSaved):
            self._saved = event.step
        elif isinstance(event, Skipped):
            self.skipped.append(event)
        elif isinstance(event, StateChanged):
            self.state, self.step, self.steps = event.state, event.step, event.steps
            self._phase = _LEFT.get(event.state, "")
        elif isinstance(event, Warning):
            self._warnings.append(in_widgets(event.message))

    def _training(self) -> str:
        """The phase after a measurement or a preview; steps are told with their loss, but for the first."""
        return "" if self._last else "training"

    def text(self, saved_as: str | None = None) -> str:
        """The run in a few lines, as few as fit under the node; `saved_as` is the finished LoRA's name."""
        lines = [self.origin] if self.origin else []
        if self._last is not None:
            last = self._last
            lines.append(f"step {last.step} / {last.steps} · loss {last.loss:.4f} · lr {last.lr:.2e}")
            lines.append(
                f"{last.seconds_per_step:.2f} s/step · {duration(last.eta_seconds)} left · {size(last.peak_memory)}"
            )
        lines += [f"{name.replace('_', ' ')} loss {value:.4f}" for name, value in self._parts.items()]
        if self.validations:
            lines.append(self._validation_text())
        if self.skipped:
            lines.append(self._skipped_text())
        if self.memory:
            lines.append(self.memory)
        if self._phase:
            lines.append(self._phase)
        if saved_as:
            lines.append(f"saved as {saved_as}")
        elif self._saved is not None:
            lines.append(f"saved at step {self._saved}" + self._asked_for(SAVE, self._saved))
        if SAMPLE in self.answered:
            step = self.answered[SAMPLE]
            lines.append(f"samples drawn at step {step}{self._asked_for(SAMPLE, step)}")
        return "\n".join(lines + [f"⚠ {message}" for message in (*self.notes, *self._warnings[-2:])])

    def _asked_for(self, request: str, step: int) -> str:
        return " as you asked" if self.answered.get(request) == step else ""

    def _validation_text(self) -> str:
        """The latest loss on held-out pictures, and the lowest where that was earlier."""
        last, best = self.validations[-1], min(self.validations, key=lambda one: one.loss)
        text = f"validation loss {last.loss:.4f} at step {last.step}"
        return text if best is last else f"{text} · lowest {best.loss:.4f} at step {best.step}"

    def _skipped_text(self) -> str:
        """How many batches were passed over, and what the last one was."""
        count, last = len(self.skipped), self.skipped[-1]
        images = ", ".join(last.images[:_NAMED_IMAGES]) + (", …" if len(last.images) > _NAMED_IMAGES else "")
        batches = "1 batch skipped" if count == 1 else f"{count} batches skipped, the last"
        return f"⚠ {batches} at step {last.step}: {last.what} not finite ({images})"
