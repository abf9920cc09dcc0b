"""Which checkpoints the user keeps for good: pinned.json in a run's folder, with a hash that tells damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..reading import read_json


def read_pins(run: Path) -> frozenset[int] | None:
    """The pinned steps (a bare list of them, as written by hand, will do); None if the file is damaged."""
    try:
        data = read_json(run / "pinned.json")
        steps = data if isinstance(data, list) else data["steps"]
        whole = isinstance(data, list) or data["sha256"] == _digest(steps)
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return frozenset(steps) if whole and all(type(step) is int for step in steps) else None


def write_pins(run: Path, pins: Collection[int]) -> None:
    """Replaces the pinned steps.

    Raises:
        SaveError: if they cannot be written; then nothing has changed.
    """
    steps = sorted(pins)
    text = json.dumps({"steps": steps, "sha256": _digest(steps)})
    write_atomically(run / "pinned.json", (text + "\n").encode(), inside=run)


def _digest(steps: Any) -> str:
    return hashlib.sha256(json.dumps(steps).encode()).hexdigest()
