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

from ..names import Naming, Shapes

IN_CHECKPOINTS = ("model.diffusion_model.", "diffusion_model.", "")
"""Where denoisers begin in files."""


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
    title: str
    configs: Path
    """Folder with the configurations of the real model's parts, such as `unet.json`."""
    parts: Mapping[str, PartLayout]
    schedule: Callable[[dict[str, Any], Shapes, Mapping[str, str]], dict[str, Any]]
    """(shipped scheduler configuration, all shapes of the file, its metadata) → the file's own."""

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part of the real model, such as "unet" or "scheduler"."""
        config: dict[str, Any] = json.loads((self.configs / f"{part}.json").read_text(encoding="utf-8"))
        return config
