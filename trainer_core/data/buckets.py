"""Which size an image is trained at: about a resolution's area, in its own aspect, never enlarged."""

from __future__ import annotations

import math
from collections.abc import Sequence

Size = tuple[int, int]
"""Width and height in pixels."""
DEFAULT_DIVISOR = 16
"""Where the base is not known yet."""


def bucket_size(width: int, height: int, resolution: int, divisor: int) -> Size:
    """The bucket of an image at a resolution.

    Both edges are multiples of `divisor` and at most the image's own; the area is at most resolution², and of the sizes
    next to the ideal one the one with the least cropping wins, the larger one at a tie.

    Raises:
        ValueError: if an edge of the image is shorter than `divisor`.
    """
    if min(width, height) < divisor:
        raise ValueError(f"{width}x{height} is too small: each edge needs at least {divisor} pixels")
    limit = max(resolution, divisor) ** 2
    scale = min(1.0, resolution / math.sqrt(width * height))
    ideal_width, ideal_height = width * scale, height * scale
    if ideal_width < divisor:  # a very long strip: the short edge takes one unit, the long one what area is left
        ideal_width, ideal_height = divisor, min(height, limit / divisor)
    elif ideal_height < divisor:
        ideal_width, ideal_height = min(width, limit / divisor), divisor

    def around(ideal: float, longest: int) -> set[int]:
        below = int(ideal // divisor) * divisor
        return {edge for edge in (below, below + divisor) if edge <= longest}

    candidates = [(w, h) for w in around(ideal_width, width) for h in around(ideal_height, height) if w * h <= limit]
    return min(candidates, key=lambda size: (round(cropped_share(width, height, size), 9), -size[0] * size[1], size))


def bucket_sizes(width: int, height: int, resolutions: Sequence[int], divisor: int) -> list[Size]:
    """An image's buckets at several resolutions, each once: a small image does not come again in larger buckets."""
    found: dict[Size, None] = {}
    for resolution in sorted(resolutions):
        found[bucket_size(width, height, resolution, divisor)] = None
    return list(found)


def cover_box(width: int, height: int, size: Size) -> tuple[float, float, float, float]:
    """The centred part (left, top, right, bottom) of an image that fills a bucket of a size when it is scaled."""
    scale = max(size[0] / width, size[1] / height)
    shown_width, shown_height = size[0] / scale, size[1] / scale
    # rounding must not put an edge outside the image by 1e-15, which Pillow refuses
    left, top = max(0.0, (width - shown_width) / 2), max(0.0, (height - shown_height) / 2)
    return left, top, min(width, left + shown_width), min(height, top + shown_height)


def cropped_share(width: int, height: int, size: Size) -> float:
    """Share of the image that a bucket of this aspect cuts off."""
    left, top, right, bottom = cover_box(width, height, size)
    return 1 - (right - left) * (bottom - top) / (width * height)
