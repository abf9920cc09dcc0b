"""Small pictures of large ones, kept on the disk: pages show hundreds of them at once."""

from __future__ import annotations

import threading
from pathlib import Path

from ...trainer_core.api import Thumbnails
from ...trainer_core.errors import DatasetError
from .. import host
from .asked import Refused
from .sending import Picture

SIZES = (96, 192, 384, 768)
"""Pixels of the longer side; others are rounded up, so that few are kept."""
_THUMBNAILS = Thumbnails(host.runs_root() / ".thumbnails")
_TURNS = threading.Semaphore(2)
"""A page full of new pictures must not take the processor from a training."""


def thumbnail(path: Path, size: int, moving: bool = False) -> Picture:
    """A picture, or the first frame of a video that is an animated picture, of at most about `size` pixels.

    Args:
        path: out of a listing of ours.
        moving: of a clip, some of its frames.

    Raises:
        Refused: if it cannot be read as a picture.
    """
    rounded = next((one for one in SIZES if one >= size), SIZES[-1])
    try:
        with _TURNS:
            data, mark = _THUMBNAILS.of(path, rounded, moving)
    except DatasetError as error:
        raise Refused(404, str(error)) from None
    return Picture(data, mark)
