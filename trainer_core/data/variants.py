"""The forms in which one picture is trained on: mirrored, upside down, and which part of it is shown.

The forms are few and fixed, so that their latents can be cached. Which one a draw uses is a function of its place;
which part a random crop shows is a function of the file's content alone, so that runs of any seed share the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from ..config import DatasetConfig
from ..randomness import uniform
from .buckets import Size, cover_box
from .clips.timing import PARTS

Box = tuple[float, float, float, float]
"""Part of an image in pixels: left, top, right, bottom."""

CROPS = 4
"""How many random parts of an image there are."""
LEAST_SHOWN = 0.8
"""Share of the centre crop's edges that random parts have at least: they vary the framing, not the subject."""


@dataclass(frozen=True)
class Variant:
    """One form of a picture. `Variant()` is the plain one: the centre, not mirrored."""

    flip_x: bool = False
    """Mirrored left to right."""
    flip_y: bool = False
    """Upside down."""
    crop: int = 0
    """0 is the centre, 1 to CROPS are the random parts."""
    part: int = 0
    """Of a clip: 0 is the one that the sample says, 1 to PARTS are random ones."""


def variants_of(dataset: DatasetConfig) -> list[Variant]:
    """All forms in which a data set's pictures may be drawn; those for validation are never changed."""
    if dataset.role == "validation":
        return [Variant()]
    crops = range(1, CROPS + 1) if dataset.crop == "random" else (0,)
    flips_x, flips_y = (((False, True) if flips else (False,)) for flips in (dataset.flip_x, dataset.flip_y))
    parts = range(1, PARTS + 1) if dataset.clip_part == "random" else (0,)
    return [Variant(*one) for one in product(flips_x, flips_y, crops, parts)]


def choose_variant(dataset: DatasetConfig, *place: int | str) -> Variant:
    """The form that a draw uses: each of `variants_of` is as likely as any other."""
    if dataset.role == "validation":
        return Variant()
    return Variant(
        flip_x=dataset.flip_x and uniform("flip", *place) < 0.5,
        flip_y=dataset.flip_y and uniform("flip_y", *place) < 0.5,
        crop=1 + int(uniform("crop", *place) * CROPS) if dataset.crop == "random" else 0,
        part=1 + int(uniform("part", *place) * PARTS) if dataset.clip_part == "random" else 0,
    )


def box_of(width: int, height: int, size: Size, variant: Variant, content: str) -> Box:
    """The part of an image that a variant shows in a bucket; always of the bucket's aspect, and never enlarged.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        size: the bucket.
        variant: which part; mirroring comes later and does not move it.
        content: digest of the file, which fixes the random parts.
    """
    left, top, right, bottom = cover_box(width, height, size)
    if variant.crop == 0:
        return left, top, right, bottom
    place = (content, *size, variant.crop)
    least = min(1.0, max(LEAST_SHOWN, size[0] / (right - left), size[1] / (bottom - top)))
    share = least + (1 - least) * uniform("crop share", *place)
    shown_width, shown_height = share * (right - left), share * (bottom - top)
    left = (width - shown_width) * uniform("crop left", *place)
    top = (height - shown_height) * uniform("crop top", *place)
    return left, top, min(width, left + shown_width), min(height, top + shown_height)
