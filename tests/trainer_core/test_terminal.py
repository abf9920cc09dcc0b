"""The line of progress, and numbers for people."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from trainer_core.commands.terminal import Progress, print_table
from trainer_core.runs import events


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and shows what a reader of its screen sees."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Carriage returns go to the start of the line; what is written then covers what was there."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


def step(number: int, of: int, loss: float = 0.5) -> events.StepDone:
    return events.StepDone(number, of, loss, 1e-4, 0.25, (of - number) * 0.25, 1_234_567_890)


def test_table_has_columns_as_wide_as_needed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "long head"), [("value", None), ("v", 3)])
    assert capsys.readouterr().out.splitlines() == ["a      long head", "----------------", "value", "v      3"]


def test_table_is_aligned_for_wide_letters_and_obeys_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [("漢字", 1), ("[bold]", ":smile:"), ("x\x1b[2J", "\n")])
    assert capsys.readouterr().out.splitlines()[2:] == ["漢字      1", "[bold]    :smile:", r"x\x1b[2J  \n"]


def test_table_wraps_on_a_narrow_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "20")
    words = "one two three four five six"
    print_table(("a", "b"), [("x", words)])
    assert capsys.readouterr().out.splitlines()[2:] == [f"x  {words}"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(("a", "b"), [("x", words)])
    assert capsys.readouterr().out.splitlines()[2:] == ["x  one two three", "   four five six"]


def test_plain_output_tells_the_story_in_few_lines() -> None:
    out = io.StringIO()
    progress = Progress(out)
    for done in range(50):
        progress(events.Phase("encoding images", done, 50))
    for number in range(1, 1001):
        progress(step(number, 1000))
    lines = out.getvalue().splitlines()
    assert lines[0] == "encoding images"
    assert [line.split()[1] for line in lines[1:]] == [f"{n}/1000" for n in (1, *range(50, 1001, 50))]
    assert lines[-1] == "step 1000/1000  loss 0.5000  0.25 s/step  ETA 0:00  peak 1.1 GB"


def test_short_job_prints_every_step() -> None:
    out = io.StringIO()
    progress = Progress(out)
    for number in range(1, 6):
        progress(step(number, 5))
    assert len(out.getvalue().splitlines()) == 5


def test_terminal_line_rewrites_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    progress = Progress(out)
    progress(events.Phase("encoding images with a long explanation of what that is and how it goes", 3, 12))
    progress(step(1, 300, loss=0.25))
    progress(step(2, 300, loss=0.125))
    assert out.screen() == ["step 2/300  loss 0.1250  0.25 s/step  ETA 1:14  peak 1.1 GB"]
    progress(events.Warning("careful"))
    progress(step(3, 300))
    progress(events.CheckpointSaved(3, Path("there")))
    assert out.screen() == ["warning: careful", "saved there", ""]


def test_terminal_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    Progress(out)(step(1, 300))
    assert out.screen() == ["step 1/300  loss 0.5"[:19]]


def test_training_goes_on_when_nobody_reads_any_more() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as out:
        progress = Progress(out)
        progress.say("first")
        assert os.read(reader, 100) == f"first{os.linesep}".encode()
        os.close(reader)
        for number in (1, 2, 3):
            progress(step(number, 3))
        progress.say("last")


def test_a_pause_says_how_it_ends() -> None:
    out = io.StringIO()
    Progress(out, on_pause="tell it to go on")(events.StateChanged("paused", 7, 9))
    Progress(out)(events.StateChanged("paused", 7, 9))
    assert out.getvalue().splitlines() == ["paused at step 7. To go on: tell it to go on", "paused at step 7"]


def test_a_batch_that_is_left_out_is_told() -> None:
    out = io.StringIO()
    Progress(out)(events.Skipped(7, "loss", ("a.png", "b.png")))
    assert out.getvalue() == "warning: step 7: left out a.png, b.png, whose loss is not finite\n"
