"""What commands print: tables, JSON, and the one line of progress."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from .. import api
from ..api import duration, size

_QUIET_SECONDS = 60.0
"""Without a terminal, a line is due after this long even if little happened."""


def print_json(value: Any) -> None:
    """Machine-readable output: one JSON document, ASCII, so that every console and pipe carries it unharmed.

    JSON has no infinite numbers and no nan, which files of others may hold: they become null.
    """
    print(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def say(text: object = "", out: TextIO | None = None) -> None:
    """A line for people. All that commands print goes through here or `print_table`."""
    print(printable(str(text)), file=out, flush=True)


def printable(text: str, lines: bool = True) -> str:
    """A text whose control characters are shown and not obeyed: names and metadata of other people's files may hold
    escapes that recolour a terminal, retitle it or hide what was printed, and letters that turn the direction round.

    Args:
        lines: ends of lines and tabs stay.
    """
    return (_CONTROL if lines else _CONTROL_AND_LINES).sub(lambda found: ascii(found[0])[1:-1], text)


_OTHERS = "\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f{_OTHERS}]")
_CONTROL_AND_LINES = re.compile(rf"[\x00-\x1f{_OTHERS}]")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else value


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Left-aligned columns, as wide as their widest cell; where the terminal is narrower, cells go on below.

    Without a header there is none shown.
    """
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rule = Box("    \n    \n -- \n    \n    \n    \n    \n    \n")
    table = Table(*header, show_header=bool(header), box=rule, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if cell is None else printable(str(cell), lines=False)) for cell in row))
    # a line for each row where nobody's screen ends
    console = Console(width=None if sys.stdout.isatty() else 1_000_000, color_system=None)
    with console.capture() as shown:
        console.print(table)
    for line in shown.get().splitlines():
        print(line.rstrip())


def quiet_libraries() -> None:
    """transformers draws a bar for each part of a model that it loads, which would tear our line of progress."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def step_line(event: api.StepDone) -> str:
    """The progress line of a step."""
    parts = [
        f"step {event.step}/{event.steps}",
        f"loss {event.loss:.4f}",
        f"{event.seconds_per_step:.2f} s/step",
        f"ETA {duration(event.eta_seconds)}",
    ]
    if event.peak_memory:
        parts.append(f"peak {size(event.peak_memory)}")
    return "  ".join(parts)


class Progress:
    """Listens to a job. On a terminal one line rewrites itself; elsewhere about twenty plain lines tell the story."""

    def __init__(self, out: TextIO | None = None, on_pause: str | None = None) -> None:
        """`on_pause` is what to type to go on after a pause."""
        self._out = out or sys.stdout
        self._on_pause = on_pause
        self._rewrites = self._out.isatty()
        self._drawn = 0
        self._last_line = -_QUIET_SECONDS
        self._last_phase: str | None = None
        self._stepped = False

    def __call__(self, event: api.Event) -> None:
        if isinstance(event, api.StepDone):
            self._last_phase = None
            self._show(step_line(event), due=not self._stepped or _is_twentieth(event))
            self._stepped = True
        elif isinstance(event, api.Phase):
            counted = f" {event.done}/{event.total}" if self._rewrites and event.total > 1 else ""
            self._show(f"{event.what}{counted}", due=event.what != self._last_phase)
            self._last_phase = event.what
        elif isinstance(event, api.CheckpointSaved):
            self.say(f"saved {event.path}")
        elif isinstance(event, api.SampleReady):
            self.say(f"drew {event.clip or event.path}")
        elif isinstance(event, api.MemoryPlanned):
            self.say(event.message)
        elif isinstance(event, api.Warning):
            self.say(f"warning: {event.message}")
        elif isinstance(event, api.Skipped):
            images = ", ".join(event.images)
            self.say(f"warning: step {event.step}: left out {images}, whose {event.what} is not finite")
        elif isinstance(event, api.StateChanged) and event.state == "paused":
            self._last_phase = None
            self.say(f"paused at step {event.step}" + (f". To go on: {self._on_pause}" if self._on_pause else ""))

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(f"{printable(text)}\n")

    def clear(self) -> None:
        """Wipes the rewritten line, so that what is printed next starts clean."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _show(self, text: str, due: bool) -> None:
        text = printable(text, lines=False)
        if self._rewrites:
            # Spaces, not an escape code, wipe the rest: that works in every console.
            text = text[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + text.ljust(self._drawn))
            self._drawn = len(text)
        elif due or time.monotonic() - self._last_line >= _QUIET_SECONDS:
            self._write(f"{text}\n")
            self._last_line = time.monotonic()

    def _write(self, text: str) -> None:
        """Writes to whoever reads. If nobody does any more (`… | head`, a closed terminal), training goes on unseen."""
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._out.fileno())
            os.close(nowhere)


def _is_twentieth(event: api.StepDone) -> bool:
    """True at the last step and at each twentieth of the way."""
    return event.step == event.steps or event.step % max(1, event.steps // 20) == 0
