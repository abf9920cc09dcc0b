"""Names of LoRA files in the folders that ComfyUI lists. Nothing here is of ComfyUI."""

from __future__ import annotations

import filecmp
import glob
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ..trainer_core.api import export_lora
from ..trainer_core.config import plain_name
from ..trainer_core.errors import ConfigError


class Exported(NamedTuple):
    """A LoRA as loaders find it."""

    name: str
    """In ComfyUI's lists."""
    path: Path
    older: tuple[str, ...]
    """Names that were asked for, or counted on from it, and are other LoRAs'."""


def note(older: Sequence[str]) -> list[str]:
    """What a user should know who has an older LoRA selected in a loader, in a line or none."""
    if not older:
        return []
    more = f" (and {len(older) - 1} more)" if len(older) > 1 else ""
    return [f"{older[-1]}{more} is another LoRA: loaders that have it selected stay with it"]


def earlier(job: str, exported: Sequence[Exported], roots: Sequence[Path]) -> list[str]:
    """Names of other LoRAs in the folders that trainings of the same name have left there, the oldest first."""
    own = re.compile(rf"{re.escape(job)}(_\d+)?(_\d+_steps)?(_\d+)?(_high_noise|_low_noise)?(_\d+)?")
    found = [
        path for root in roots for path in root.glob(f"{glob.escape(job)}*.safetensors") if own.fullmatch(path.stem)
    ]
    others = [path for path in found if not any(_same(path, one.path) for one in exported)]
    return list(dict.fromkeys(path.name for path in sorted(others, key=lambda path: path.stat().st_mtime)))


def _same(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def lora_stem(run: str, step: int) -> str:
    """The name that a run's LoRA gets unasked."""
    return f"{run[:80]}_{step}_steps"


def export(source: Path, folder: Path, name: str, roots: Sequence[Path], asked: bool = True) -> Exported:
    """Copies a LoRA to a folder, under a name that means this file alone, unless it is there already.

    ComfyUI finds a LoRA by name in the first of several folders that has it, and its loader never reads a path twice:
    only a name that is new in all of them, or the same file in the first, surely means this one.

    Args:
        folder: one of `roots`. The first of these is where the user's own LoRAs lie: whoever exports to another one is
            content with the same file there.
        roots: folders that ComfyUI looks in, in that order.
        asked: whether a person chose the name; else the LoRA keeps one that it has in any of the folders.

    Raises:
        ConfigError: for a name that is no plain file name.
        AdapterError: if the source is no whole safetensors file.
        SaveError: if it cannot be written.
    """
    try:
        base = plain_name(name.strip().removesuffix(".safetensors"))
    except ValueError as error:
        raise ConfigError(f"name: {error}") from None
    if not asked:
        base = _known_as(source, roots) or base
    older: list[str] = []
    for number in count(1):
        stem = base if number == 1 else f"{base}_{number}"
        there = [path for root in roots if (path := root / f"{stem}.safetensors").exists()]
        same = bool(there) and _same(there[0], source)
        if same and (there[0].parent == folder or folder != roots[0]):
            return Exported(there[0].name, there[0], tuple(older))
        if same or not there:
            path = export_lora(source, folder, stem)
            return Exported(path.name, path, tuple(older))
        older.append(there[0].name)
    raise AssertionError("there is no end of numbers")


def _known_as(source: Path, roots: Sequence[Path]) -> str | None:
    paths = (path for root in roots for path in sorted(root.glob("*.safetensors")))
    return next((path.stem for path in paths if _same(path, source)), None)
