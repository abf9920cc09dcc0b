"""Files of models that jobs may name by their names alone, because a host keeps them in folders of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

SOURCE = "source"
"""What stands for `model.source` where a part's name is asked for."""

Finder = Callable[[str, str], Path | None]
"""(part or `SOURCE`, name) → file; None if there is none of that name."""

_FINDERS: list[Finder] = []


def register_model_files(find: Finder) -> None:
    """Adds the folders of a host."""
    _FINDERS.append(find)


def model_file(part: str, name: str) -> Path | None:
    """The file that a job names and no folder of its own holds; None if no host has it either.

    Args:
        part: of `model.files`, or `SOURCE`.
    """
    return next(filter(None, (find(part, name) for find in _FINDERS)), None)
