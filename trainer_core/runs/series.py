"""A run's metrics as lines of a chart: few points, and every peak and dip still there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .metrics import is_number

_NO_VALUES = {"step", "skipped", "not_finite"}
_OWN_STEPS = {"validation_loss", "memory_predicted", "memory_measured"}
"""What lines of their own tell, every so many steps."""


def series(lines: Iterable[dict[str, Any]], after: int = -1, points: int = 1000) -> dict[str, Any]:
    """`steps` and `series`: by name what was logged at each of them (None where it was not), or `steps` and `values`.

    Of a step that was made again after a crash, the last line counts.

    Args:
        lines: of metrics.jsonl.
        after: the step before the first.
        points: at most as many of each, 4 or more; those kept are the lowest and highest loss of each stretch.
    """
    trained: dict[int, dict[str, Any]] = {}
    own: dict[str, dict[int, float]] = {}
    last = after
    for line in lines:
        step = line["step"]
        if not after < step < 2**53:
            continue
        last = max(last, step)
        if "loss" in line:
            trained[step] = line
        for name in _OWN_STEPS & line.keys():
            if (value := _finite(line[name])) is not None:
                own.setdefault(name, {})[step] = value
    rows = [trained[step] for step in sorted(trained)]
    kept = [rows[k] for k in thinned([_finite(row["loss"]) for row in rows], points)]
    left_out = _NO_VALUES | _OWN_STEPS
    names = dict.fromkeys(
        name for row in kept for name, value in row.items() if name not in left_out and is_number(value)
    )
    shown: dict[str, Any] = {name: [_finite(row.get(name)) for row in kept] for name in names}
    for name, values in own.items():
        steps = sorted(values)
        few = [steps[k] for k in thinned([values[step] for step in steps], points)]
        shown[name] = {"steps": few, "values": [values[step] for step in few]}
    return {"steps": [row["step"] for row in kept], "series": shown, "last_step": last}


def thinned(values: Sequence[float | None], points: int) -> list[int]:
    """Indices of at most `points` values, in order: the first, the last, and of each stretch the lowest and highest."""
    if len(values) <= points:
        return list(range(len(values)))
    stretches = max(1, (points - 2) // 2)
    kept = {0, len(values) - 1}
    for k in range(stretches):
        inside = range(k * len(values) // stretches, (k + 1) * len(values) // stretches)
        known = [(value, i) for i in inside if (value := values[i]) is not None]
        if known:
            kept |= {min(known)[1], max(known)[1]}
    return sorted(kept)


def _finite(value: object) -> float | None:
    return float(value) if is_number(value) and math.isfinite(value) else None  # type: ignore[arg-type]
