"""What pictures are compared by: a vision model that the user has, or else the data's own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import BaseModelError
from ..reading import is_file, is_folder
from .statistics import Statistics
from .vision import Vision, find_vision

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

STATISTICS = "statistics"
"""The name by which the data's own statistics are asked for."""


class Embedding(Protocol):
    """Pictures as points whose distances say how much they differ."""

    name: str
    """As it is told."""

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, D), fp32, on the CPU."""


def model_of(asked: str | None) -> Path | None:
    """The vision model that is used; None: the data's own statistics are.

    Args:
        asked: a file or a folder, or `STATISTICS`; None takes a model that is on this machine, if there is one.

    Raises:
        BaseModelError: if there is no such file or folder.
    """
    if asked == STATISTICS:
        return None
    if asked is None:
        return find_vision()
    path = Path(asked).expanduser()
    if not (is_file(path) or is_folder(path)):
        raise BaseModelError(f"{asked}: there is no such vision model; name a file or a folder, or `{STATISTICS}`")
    return path


def identity_of(model: Path | None) -> str:
    """Changes whenever embeddings would."""
    if model is None:
        return STATISTICS
    file = model if is_file(model) else model / "config.json"
    status = file.resolve().stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


def embedding_of(model: Path | None, training: Sequence[Image.Image], device: torch.device) -> Embedding:
    """A model in memory, or the statistics of training pictures.

    Raises:
        BaseModelError: if the model cannot be loaded.
    """
    return Statistics(training) if model is None else Vision(model, device)
