"""How long work on data tells what it does."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is, and how much there is; raises to stop the work."""


def silent(what: str, done: int, total: int) -> None:
    """Nobody wants to hear."""
