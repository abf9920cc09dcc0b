"""What a clip looks like: a picture out of its middle, how much it moves, and how bright it gets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ...content import read_once
from ..clips.decode import pictures
from ..clips.header import ClipHeader
from .looks import Look, look_of, shrunk

_SEEN = 9
"""Frames that are looked at, the first and the last among them."""


@dataclass(frozen=True)
class ClipLook(Look):
    """What a clip looks like."""

    clip: ClipHeader
    motion: float
    """How much two of the frames that were looked at, one after the other, differ at most: the mean over all pixels
    of 72 x 72, of 255."""
    brightness: float
    """Of the brightest of them: the mean over all pixels, of 255."""


def look_at_clip(path: Path, clip: ClipHeader, background: str = "white") -> ClipLook:
    """Decodes a clip to its last frame, and says what it looks like.

    Raises:
        DatasetError: if one of its frames cannot be decoded.
    """
    return _look_at(path, clip, background) if clip.tick is not None else _look_at_frames(path, clip, background)


def _look_at_frames(path: Path, clip: ClipHeader, background: str) -> ClipLook:
    """Not kept: a folder stays what it is when a picture in it changes."""
    import numpy as np

    last = len(clip.pts) - 1
    numbers = sorted({round(k * last / (_SEEN - 1)) for k in range(_SEEN)})
    seen = [shrunk(image) for _, image in pictures(path, clip, numbers, background)]
    greys = [np.asarray(image.convert("L"), np.float32) for image in seen]
    motion = max((float(np.abs(b - a).mean()) for a, b in pairwise(greys)), default=0.0)
    brightness = max(float(grey.mean()) for grey in greys)
    look = look_of(clip, seen[len(seen) // 2])
    return ClipLook(**vars(look), clip=clip, motion=motion, brightness=brightness)


_look_at = read_once(_look_at_frames)
