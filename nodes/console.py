"""A run in ComfyUI's console: one line that rewrites itself, as for sampling; in a log file a line now and then."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from typing import TextIO

from ..trainer_core.api import Event, MemoryPlanned, Phase, Skipped, StateChanged, StepDone, Warning, duration
from .failures import in_widgets

_LOG = logging.getLogger(__name__)
_LINES = 20
"""Of a run's steps, where lines stay."""
_BAR = 20
"""Characters."""


def quiet_libraries() -> None:
    """bitsandbytes, which peft imports where it is installed, warns of kernels that only 4 bits on a CPU would use."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels" not in str(record.msg))


class Console:
    """Listens to a run."""

    def __init__(self, name: str, out: TextIO | None = None) -> None:
        self._name, self._out = name, out or sys.stderr
        self._rewrites = self._out.isatty()
        self._drawn = 0
        """Characters of the line that is rewritten; 0: there is none."""
        self._phase = ""
        self._told = -1
        """The twentieth of the way that was told last."""
        self._since = time.monotonic()

    def apply(self, event: Event) -> None:
        """Tells what is new."""
        if isinstance(event, StepDone):
            self._phase = ""
            self._step(event)
        elif isinstance(event, Phase):
            if self._rewrites:
                count = f" {event.done} of {event.total}" if event.total > 1 else ""
                self._rewrite(f"{self._name}: {event.what}{count}")
            elif event.what != self._phase:
                self._say(event.what)
            self._phase = event.what
        elif isinstance(event, MemoryPlanned):
            self._say(event.message)
        elif isinstance(event, Skipped):
            self._say(f"step {event.step}: {event.what} not finite ({', '.join(event.images)})", logging.WARNING)
        elif isinstance(event, Warning):
            self._say(in_widgets(event.message), logging.WARNING)
        elif isinstance(event, StateChanged) and event.state != "failed":  # ComfyUI tells of failures
            self._say(f"{event.state} at step {event.step} of {event.steps}")

    def end(self) -> None:
        """Leaves the line as it is."""
        if self._drawn:
            self._write("\n")
            self._drawn = 0

    def _step(self, event: StepDone) -> None:
        left, took = duration(event.eta_seconds), duration(time.monotonic() - self._since)
        if self._rewrites:
            full = event.step * _BAR // event.steps
            bar = f"{event.step * 100 // event.steps:3}%|{'█' * full}{' ' * (_BAR - full)}|"
            told = f"{took}<{left}, {event.seconds_per_step:.2f} s/step, loss {event.loss:.4f}"
            self._rewrite(f"{self._name}: {bar} {event.step}/{event.steps} [{told}]")
        elif (part := event.step * _LINES // event.steps) > self._told:
            self._told = part
            told = f"loss {event.loss:.4f}, {event.seconds_per_step:.2f} s/step, {left} left"
            self._say(f"step {event.step} of {event.steps}, {told}")

    def _say(self, text: str, level: int = logging.INFO) -> None:
        """A line that stays."""
        self.end()
        _LOG.log(level, "LoRA Foundry: %s: %s", self._name, text)

    def _rewrite(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(self._drawn))
        self._drawn = len(text)

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, UnicodeEncodeError):  # nobody reads it any more, or a console without such letters
            self._rewrites = False
