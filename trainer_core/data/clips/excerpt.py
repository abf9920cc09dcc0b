"""What a sample shows of a file: the frames of a clip, and where its sound begins."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DatasetError
from ..header import UNREADABLE
from .decode import unreadable
from .header import ClipHeader, clip_header
from .timing import random_start, resampled

if TYPE_CHECKING:
    from ..scan import Sample


@dataclass(frozen=True)
class Excerpt:
    """What is seen and heard of a file by a family whose pixels have a time axis."""

    clip: ClipHeader | None
    """None: a picture."""
    frames: tuple[int, ...]
    """Numbers of the clip's frames, in the order of time; (0,) of a picture."""
    begin: Fraction = Fraction(0)
    """Where the sound begins, in seconds after the clip's first frame."""
    samples: int = 0
    """Of sound; 0 where the family has none."""

    @property
    def parts(self) -> tuple[object, ...]:
        """What a cache key depends on."""
        heard = ("sound", self.samples, self.begin if self.clip and self.clip.sound else "none") if self.samples else ()
        return (*(("frames", *self.frames) if self.clip else ()), *heard)


def excerpt_of(sample: Sample, part: int, path: Path, rate: Fraction, sample_rate: int | None, content: str) -> Excerpt:
    """What a sample shows of one of its files: of a mask or a control clip the frames at the times of its own.

    Args:
        part: which of the random parts of its clip, 1 to PARTS; 0 is what the sample says, or the middle.
        path: of its clip or picture, its mask, or one of its control images.
        rate: frames per second that are trained at.
        sample_rate: of the sound; None: there is none.
        content: digest of the sample's own file, which fixes the random parts.

    Raises:
        DatasetError: if the file cannot be read, or ends before the sample does.
    """
    item, start = sample.item, sample.start
    if start is None and item.clip:
        count = len(resampled(item.clip, rate))
        start = random_start(count, sample.frames, part, content) if part else (count - sample.frames) // 2
    start = start or 0
    clip = item.clip if path == item.path else _clip(path)
    if clip is None:
        return Excerpt(None, (0,), samples=_samples(1, rate, sample_rate))
    frames = resampled(clip, rate)
    if len(frames) < start + sample.frames - 1:  # one more or less comes from rounding
        raise DatasetError(
            f"{path}: has {len(frames)} frames at {float(rate):g} a second, and {item.key} is trained on up to frame "
            f"{start + sample.frames}. Make it as long as its clip"
        )
    shown = tuple(frames[min(k, len(frames) - 1)] for k in range(start, start + sample.frames))
    return Excerpt(clip, shown, Fraction(start) / rate, _samples(sample.frames, rate, sample_rate))


def _samples(frames: int, rate: Fraction, sample_rate: int | None) -> int:
    return round(frames / rate * sample_rate) if sample_rate else 0


def _clip(path: Path) -> ClipHeader | None:
    try:
        return clip_header(path)
    except UNREADABLE as error:
        raise unreadable(path, error) from None
