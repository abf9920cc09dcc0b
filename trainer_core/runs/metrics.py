"""The lines of metrics.jsonl in a run's folder, of which a crash may have left halves, or blocks of anything."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

_TAIL = 4096
"""Bytes at the end of metrics.jsonl: a few lines at least."""


def lines_of(run: Path) -> list[str]:
    """All lines, damaged ones too; none if there is no file yet, or the disk does not give it back."""
    with suppress(OSError):
        text = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
        return [line for line in text.split("\n") if line]
    return []


def tail_of(run: Path) -> list[dict[str, Any]]:
    """The last few whole lines."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [values for line in lines if (values := parse_line(line)) is not None]


def parse_line(line: str) -> dict[str, Any] | None:
    """What a line says, if it is whole."""
    with suppress(ValueError, RecursionError, KeyError, TypeError):
        values: dict[str, Any] = json.loads(line)
        if type(values["step"]) is int and all(is_number(values.get(name, 0)) for name in ("loss", "validation_loss")):
            return values
    return None


def is_number(value: object) -> bool:
    """Not so for True and False, which Python counts among them."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
