"""A run's progress in ComfyUI's console."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from types import ModuleType

import pytest

Pack = Callable[[str], ModuleType]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(text: str) -> list[str]:
    """What stands on a terminal's lines in the end."""
    lines = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_a_terminal_has_one_line_that_rewrites_itself(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    events, out = pack("trainer_core.runs.events"), Terminal()
    console = pack("nodes.console").Console("zorble", out)
    console.apply(events.Phase("encoding images", 3, 12))
    assert shown(out.getvalue()) == ["zorble: encoding images 3 of 12"]
    for step in (1, 2):
        console.apply(events.StepDone(step, 4, 0.5, 1e-4, 0.25, 1.0, 0))
    (line,) = shown(out.getvalue())
    assert line.startswith("zorble:  50%|██████████          | 2/4 [")
    assert line.endswith("<0:01, 0.25 s/step, loss 0.5000]")
    console.end()
    assert shown(out.getvalue()) == [line, ""]


def test_a_file_has_a_line_now_and_then(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    events, out = pack("trainer_core.runs.events"), io.StringIO()
    console = pack("nodes.console").Console("zorble", out)
    console.apply(events.StateChanged("running", 0, 1000))
    for done in range(1, 13):
        console.apply(events.Phase("encoding images", done, 12))
    for step in range(1, 1001):
        console.apply(events.StepDone(step, 1000, 0.5, 1e-4, 0.25, 1.0, 0))
    console.apply(events.StateChanged("finished", 1000, 1000))
    console.end()
    assert out.getvalue() == ""
    assert len(caplog.messages) == 1 + 1 + 21 + 1  # 20 parts of the way, and its first step
    assert caplog.messages[1] == "LoRA Foundry: zorble: encoding images"
    assert caplog.messages[-1] == "LoRA Foundry: zorble: finished at step 1000 of 1000"


def test_a_console_that_cannot_write_ends_no_training(pack: Pack) -> None:
    events = pack("trainer_core.runs.events")
    narrow = Terminal()
    narrow.write = lambda _: "█".encode("ascii")  # type: ignore[assignment, method-assign, return-value]
    console = pack("nodes.console").Console("zorble", narrow)
    for step in (1, 2):
        console.apply(events.StepDone(step, 4, 0.5, 1e-4, 0.25, 1.0, 0))
