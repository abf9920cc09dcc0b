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
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = isinstance(steps, list) and all(type(step) is int for step in steps)
    return frozenset(steps) if whole and data in (steps, _record(steps)) else None


def write_pins(run: Path, pins: Collection[int]) -> None:
    """Replaces the pinned steps.

    Raises:
        SaveError: if they cannot be written; then nothing has changed.
    """
    write_atomically(run / "pinned.json", (json.dumps(_record(sorted(pins))) + "\n").encode(), inside=run)


def _record(steps: list[int]) -> dict[str, Any]:
    return {"steps": steps, "sha256": hashlib.sha256(json.dumps(steps).encode()).hexdigest()}
