"""Checks of sizes: what is too small, and what buckets take away."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product

from ..buckets import Size, bucket_sizes, cropped_share
from .moving import lengths_of
from .report import Finding, Severity
from .survey import Circumstances, Picture, Survey

Kind = tuple[float, str, str, int]
"""What images must share beside their size to share a batch: strength of the adapter, role, target, frames."""
TINY = 0.5
"""An image whose edges (their mean, in the geometric sense) are under this share of the smallest resolution."""
SMALL = 0.9
"""Under this share of a resolution, an image counts as too small for it; a few percent less do no harm."""
SHRUNK = 0.5
"""An image loses detail worth telling if its edges shrink to less than this at the largest resolution."""
CROPPED = 0.15
"""Share of an image's area that a bucket may cut off before it is told."""


def check_sizes(survey: Survey, where: Circumstances) -> Iterator[Finding]:
    """Images too small to train on, tiny, below a resolution, and those that lose much to their bucket."""
    dataset = survey.dataset
    smallest, largest = min(dataset.resolutions), max(dataset.resolutions)
    too_small, tiny, small, smallish, shrunk, cropped = _told(6)
    for picture in survey.readable:
        width, height = _size(picture)
        edge = math.sqrt(width * height)
        if min(width, height) < where.divisor:
            too_small[picture.key] = f"{width}x{height}"
            continue
        if edge < TINY * smallest:
            tiny[picture.key] = f"{width}x{height}"
        elif edge < SMALL * smallest:
            small[picture.key] = f"{width}x{height}"
        elif edge < SMALL * largest:
            smallish[picture.key] = f"{width}x{height}"
        if largest < SHRUNK * edge:
            shrunk[picture.key] = f"{width}x{height}"
        sizes = bucket_sizes(width, height, dataset.resolutions, where.divisor)
        lost, size = max((cropped_share(width, height, size), size) for size in sizes)
        if lost > CROPPED:
            cropped[picture.key] = f"{lost:.0%} of {width}x{height} for {size[0]}x{size[1]}"

    def tell(severity: Severity, check: str, found: dict[str, str], what: str) -> Iterator[Finding]:
        if found:
            example = next(iter(found.values()))
            message = what.format(example=example, smallest=smallest, largest=largest, divisor=where.divisor)
            yield Finding(severity, check, tuple(found), message, survey.folder)

    yield from tell(
        "error", "tiny-image", too_small,
        "smaller than {divisor} pixels along an edge ({example}), which is refused. Remove or replace",
    )  # fmt: skip
    yield from tell(
        "warning", "tiny-image", tiny,
        "tiny ({example}): less than half of resolution {smallest}. Remove, or replace by larger ones",
    )  # fmt: skip
    yield from tell(
        "warning", "below-resolution", small,
        "smaller than resolution {smallest} ({example}); images are never enlarged. Replace, or train at less",
    )  # fmt: skip
    yield from tell(
        "note", "below-resolution", smallish,
        "too small for resolution {largest} ({example}): trained at their own size there, never enlarged",
    )  # fmt: skip
    yield from tell(
        "note", "shrunk", shrunk,
        "shrunk to less than half of their edges ({example}) even at resolution {largest}: fine detail is lost",
    )  # fmt: skip
    yield from tell(
        "warning", "cropped", cropped,
        "lose much of their area to their bucket ({example}). Crop them yourself, so that you choose what stays",
    )  # fmt: skip


def check_buckets(surveys: Sequence[Survey], where: Circumstances) -> Iterator[Finding]:
    """Buckets with too few images to fill a batch, over all training sets, whose images share batches.

    Without a job there is no batch size: then buckets of a single image are noted.
    """
    if where.batch_size == 1:
        return
    buckets: dict[tuple[Size, Kind], dict[str, float]] = defaultdict(dict)
    for survey in surveys:
        dataset = survey.dataset
        if dataset.role == "validation":
            continue
        kind = (dataset.adapter_strength, dataset.role, dataset.regularization_target)
        for picture in survey.readable:
            width, height = _size(picture)
            if min(width, height) >= where.divisor:
                sizes = bucket_sizes(width, height, dataset.resolutions, where.divisor)
                for size, frames in product(sizes, lengths_of(picture.look, dataset, where.spec)):
                    buckets[(size, (*kind, frames))][str(picture.path)] = dataset.weight * picture.repeats
    if where.batch_size is None and len({path for images in buckets.values() for path in images}) < 2:
        return
    lonely: dict[Size, dict[str, float]] = {}
    for (size, _), images in buckets.items():
        if sum(images.values()) < (where.batch_size or 2):
            lonely.setdefault(size, {}).update(images)
    if not lonely:
        return
    names = _names(surveys, {path for images in lonely.values() for path in images})
    told = ", ".join(f"{w}x{h} ({len(images)})" for (w, h), images in sorted(lonely.items())[:5])
    told += f" and {len(lonely) - 5} more" if len(lonely) > 5 else ""
    if where.batch_size:
        message = f"buckets with fewer images than a batch of {where.batch_size}: {told}. Their batches stay short"
        yield Finding("warning", "small-bucket", names, f"{message}; crop to the size of others", surveys[0].folder)
    else:
        message = f"alone in their buckets: {told}. With a batch size over 1 their batches stay short"
        yield Finding("note", "small-bucket", names, message, surveys[0].folder)


def _told(count: int) -> list[dict[str, str]]:
    return [{} for _ in range(count)]


def _size(picture: Picture) -> Size:
    assert picture.look is not None
    return picture.look.width, picture.look.height


def _names(surveys: Sequence[Survey], paths: set[str]) -> tuple[str, ...]:
    """Images by key, those of other folders than the first by their whole path."""
    first = surveys[0]
    own = [picture.key for picture in first.pictures if str(picture.path) in paths]
    others = [str(p.path) for survey in surveys[1:] for p in survey.pictures if str(p.path) in paths]
    return tuple(dict.fromkeys((*own, *others)))
