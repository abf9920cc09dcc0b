"""Numbers for people."""

from __future__ import annotations

import pytest

from trainer_core.units import duration, size


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (754, "12:34"), (3723, "1:02:03"), (-1, "0:00"), (59.6, "1:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 kB"),
        (3 * 1024**2, "3.0 MB"),
        (24 * 1024**3, "24.0 GB"),  # what a GPU sold as one of 24 GB has
        (5e12, "4656.6 GB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text
