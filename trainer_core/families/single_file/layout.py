"""How a family's parts lie in single files: where each begins, what it is built with, and what its weights are called.

A part's configuration is the shipped one of the family with the sizes that the file's own shapes tell, as ComfyUI reads
them; so a model of another size opens as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor, without the part's prefix → its shape."""


@dataclass(frozen=True)
class Origin:
    """Where one weight of a diffusers model lies in a file.

    The file may hold it fused with others: then it is the rows [start, stop) of `total`, counted in units of the
    smallest. `swap_halves` is set where the file keeps (shift, scale) and diffusers (scale, shift).
    """

    name: str
    start: int = 0
    stop: int = 1
    total: int = 1
    swap_halves: bool = False
    transposed: bool = False


Naming = Callable[[str], Origin]
"""Name of a weight in diffusers' or transformers' model → where the file keeps it."""


@dataclass(frozen=True)
class PartLayout:
    """One part of a family in single files."""

    title: str
    """For messages."""
    prefixes: tuple[str, ...]
    """Where it begins in a file of several parts."""
    describe: Callable[[dict[str, Any], Shapes], tuple[dict[str, Any], Naming] | None]
    """(shipped configuration, shapes) → the file's own configuration and naming; None if these are no such weights."""


@dataclass(frozen=True)
class Layout:
    """A family in single files."""

    name: str
    """Folder of its shipped configurations."""
    title: str
    parts: Mapping[str, PartLayout]
    tokenizers: Mapping[str, str]
    """"tokenizer" and "tokenizer_2" → "clip" or "t5"."""
    schedule: Callable[[dict[str, Any], Shapes, Mapping[str, str]], dict[str, Any]]
    """(shipped scheduler configuration, all shapes of the file, its metadata) → the file's own."""


def shipped_config(layout: str, part: str) -> dict[str, Any]:
    """The configuration of a part of the real model, such as ("sdxl", "unet")."""
    config: dict[str, Any] = json.loads((CONFIGS / layout / f"{part}.json").read_text(encoding="utf-8"))
    return config
