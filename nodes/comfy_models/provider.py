"""Offers ComfyUI's loaded models to the trainer, as the family `comfyui`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...trainer_core.config import LINKS
from ...trainer_core.reading import is_file
from .base import ComfyBase
from .spec import FAMILY

if TYPE_CHECKING:
    from ...trainer_core.config import ModelConfig
    from ...trainer_core.families.base import Base


class ComfyModels:
    """A provider of families (`families.registry.Provider`)."""

    def names(self) -> Sequence[str]:
        """One for all: what a model is, is found when it is there."""
        return [FAMILY]

    def family(self, name: str) -> type[Base] | None:
        """The base class of all."""
        return ComfyBase if name == FAMILY else None

    def claims(self, model: ModelConfig) -> str | None:
        """The family, if a model's source is the links of a graph, or a file: ComfyUI finds out what it is."""
        return FAMILY if model.source.startswith(LINKS) or is_file(Path(model.source)) else None
