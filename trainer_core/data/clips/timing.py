"""Which frames of a clip are trained on: resampled by their time stamps, cut into windows of the lengths that count.

All of it is exact arithmetic on whole numbers, so that a rate of 30000/1001 picks no frame twice by a rounding error.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from ...config import DatasetConfig
from ...randomness import uniform
from .header import ClipHeader

if TYPE_CHECKING:
    from ...families.spec import FamilySpec

PARTS = 4
"""How many random parts of a clip there are; they are fixed, so that their latents can be cached."""


@dataclass(frozen=True)
class Timing:
    """How a data set's clips are counted in frames."""

    rate: Fraction | None
    """Frames per second that clips are resampled to; None: each clip's own, where no family is known yet."""
    step: int
    """Frames per latent: a clip has n · step + 1 of them."""


def timing_of(dataset: DatasetConfig, spec: FamilySpec | None) -> Timing | None:
    """How a family counts the frames of a data set, at the rate that the set asks for or else its own.

    None for families of pictures. Without a family, all clips count.
    """
    if spec is not None and spec.frame_rate is None:
        return None
    rate = dataset.fps or (spec.frame_rate if spec else None)
    return Timing(Fraction(str(rate)) if rate else None, spec.main.time_factor if spec else 1)


@lru_cache(maxsize=4096)
def resampled(clip: ClipHeader, rate: Fraction | None) -> Sequence[int]:
    """The number of the frame that is seen at k / rate, for every k of a clip.

    It is the one that is shown then, or the next one if that is nearer, and less than half a frame away: what stands
    still for long is not cut short. A frame folder has one picture for each frame, whatever the rate.
    """
    if rate is None or clip.tick is None:
        return range(len(clip.pts))
    ticks = 1 / (rate * clip.tick)  # between two frames
    times = [(pts - clip.pts[0]) * ticks.denominator for pts in clip.pts]
    length = (clip.end - clip.pts[0]) * ticks.denominator
    count = max(1, (2 * length + ticks.numerator) // (2 * ticks.numerator))  # to the nearest
    found = []
    for wanted in range(0, count * ticks.numerator, ticks.numerator):
        shown = bisect_right(times, wanted) - 1
        left = times[shown + 1] - wanted if shown + 1 < len(times) else ticks.numerator
        found.append(shown + (left < wanted - times[shown] and 2 * left < ticks.numerator))
    return found


def lengths(count: int, frames: Sequence[int], step: int) -> list[int]:
    """In how many frames a clip of `count` is trained on: each of `frames` that it has, as n · step + 1, each once.

    A short clip does not come again at longer ones, as a small picture does not at larger resolutions.
    """
    return sorted({(min(wanted, count) - 1) // step * step + 1 for wanted in frames})


def starts(count: int, length: int, part: str) -> list[int | None]:
    """Where the windows of a clip begin that are samples of their own; None where each draw chooses one."""
    room = count - length
    if part == "random":
        return [None]
    if part == "start":
        return [0]
    if part == "middle" or count < 2 * length:
        return [room // 2]
    windows = count // length
    return [(2 * k * room + windows - 1) // (2 * (windows - 1)) for k in range(windows)]


def random_start(count: int, length: int, part: int, content: str) -> int:
    """Where random part 1 to PARTS of a clip begins; a function of its content, so that runs share the cache."""
    return int(uniform("clip part", content, length, part) * (count - length + 1))
