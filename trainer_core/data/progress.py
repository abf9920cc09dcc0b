"""How long work on data tells what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is, and how much there is; raises to stop the work."""
_TELL_EVERY = 100
"""Entries between two words on how far looking through the cache has come."""
_T = TypeVar("_T")


def silent(what: str, done: int, total: int) -> None:
    """Nobody wants to hear."""


def told(wanted: list[_T], progress: Progress) -> Iterator[_T]:
    """Says how far looking through the cache has come, so that it can be stopped."""
    for number, one in enumerate(wanted):
        if number % _TELL_EVERY == 0:
            progress("looking through the cache", number, len(wanted))
        yield one
