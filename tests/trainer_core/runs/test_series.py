"""Metrics as few points, with every peak."""

from __future__ import annotations

import math
import random

import pytest

from trainer_core.runs.series import series, thinned


@pytest.mark.parametrize("points", [4, 5, 10, 101, 1000])
def test_thinning_keeps_ends_peaks_and_order(points: int) -> None:
    chance = random.Random(1)
    values: list[float | None] = [chance.gauss(0, 1) for _ in range(10_000)]
    values[1234], values[8765] = 50.0, -50.0
    values[5000:6000] = [None] * 1000
    kept = thinned(values, points)
    assert len(kept) <= points
    assert kept == sorted({*kept})
    assert {0, 9999, 1234, 8765} <= {*kept} if points > 5 else {0, 9999} <= {*kept}
    assert thinned(values[:points], points) == list(range(points))


def test_series_share_steps_and_others_have_their_own() -> None:
    lines = [{"step": step, "loss": step / 10, "lr": 1e-4, "skipped": ["a.png"], "text": "x"} for step in range(1, 6)]
    lines[2]["prior"] = 0.5
    lines += [{"step": 2, "validation_loss": 0.7}, {"step": 4, "validation_loss": math.inf}]
    lines += [{"step": 5, "loss": math.nan, "lr": 2e-4}]  # made again after a crash
    lines += [{"step": 6, "memory_predicted": 10, "memory_measured": 12}]
    found = series(lines)
    assert found["steps"] == [1, 2, 3, 4, 5]
    assert found["series"]["loss"] == [0.1, 0.2, 0.3, 0.4, None]
    assert found["series"]["lr"] == [1e-4] * 4 + [2e-4]
    assert found["series"]["prior"] == [None, None, 0.5, None, None]
    assert found["series"]["validation_loss"] == {"steps": [2], "values": [0.7]}
    assert found["last_step"] == 6
    assert found["series"].keys() == {"loss", "lr", "prior", "validation_loss", "memory_predicted", "memory_measured"}
    later = series(lines, after=3)
    assert later["steps"] == [4, 5]
    assert "validation_loss" not in later["series"]
    assert series([], after=7) == {"steps": [], "series": {}, "last_step": 7}
