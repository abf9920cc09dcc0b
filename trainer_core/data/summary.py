"""What a data set looks like before anything is trained; light enough to run whenever a user changes a widget."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DatasetError
from .buckets import DEFAULT_DIVISOR
from .captions import encoder_text
from .folder import data_files, kohya_folder
from .scan import Scan, examine, refuse, sizes_of
from .text import some


@dataclass(frozen=True)
class DatasetSummary:
    """A data set in numbers and texts."""

    count: int
    """Images."""
    buckets: dict[str, int]
    """How many samples each size has, as "512x768"."""
    captions: list[tuple[str, str]]
    """File and the exact text that the encoder sees when the caption is not dropped; one for each caption."""
    missing_captions: list[str]
    """Files that fall back to their kohya folder's name or to the default caption."""
    masks: int
    """Images with a mask, of a folder or of their own transparency."""
    controls: int
    """Control images that each image has."""
    repeats: dict[str, int]
    """How often each kohya folder's images come, by the folder's name."""
    thumbnails: list[Path]
    """The first images."""
    warnings: list[str]


def summarize(dataset: DatasetConfig, divisor: int = DEFAULT_DIVISOR) -> DatasetSummary:
    """Scans a data set.

    Args:
        divisor: what sizes are multiples of, as the family of the base has it.

    Raises:
        DatasetError: for a missing or empty folder, unreadable images, images too small, missing captions, masks or
            control images.
    """
    found = examine(dataset)
    refuse(found)
    items = found.items
    buckets: Counter[str] = Counter()
    for item in items:
        buckets.update(f"{width}x{height}" for width, height in sizes_of(item, dataset, divisor))
    return DatasetSummary(
        count=len(items),
        buckets=dict(sorted(buckets.items())),
        captions=[(item.key, encoder_text(caption, dataset)) for item in items for caption in item.captions],
        missing_captions=found.silent,
        masks=found.transparent if dataset.alpha_mask else sum(item.mask is not None for item in items),
        controls=len(dataset.control_folders),
        repeats={item.key.split("/")[0]: item.repeats for item in items if kohya_folder(item.key)[1]}
        if dataset.kohya_folders
        else {},
        thumbnails=[item.path for item in items[:8]],
        warnings=list(_warnings(found, dataset)),
    )


def _warnings(found: Scan, dataset: DatasetConfig) -> Iterator[str]:
    """What a user should know and nothing is wrong with."""
    if found.silent:
        yield f"{len(found.silent)} images have no caption of their own"
    for _, keys, what in found.index.found.left_out():
        yield f"{some(keys)}: {what}"
    if absent := found.index.absent():
        yield f"metadata files name {len(absent)} images that are not there: {some(absent)}"
    folders = {item.key.split("/")[0] for item in found.items if kohya_folder(item.key)[1]}
    if not dataset.kohya_folders and all(kohya_folder(item.key)[1] for item in found.items):
        yield (
            f"all images lie in folders named as in kohya's scripts ({some(sorted(folders))}), but kohya_folders is "
            "off: their images are not repeated"
        )
    if dataset.kohya_folders and not folders:
        yield "kohya_folders is on, but no folder is named as in `10_name`"
    if dataset.alpha_mask and (opaque := len(found.items) - found.transparent):
        yield f"{opaque} images have no transparency: all of them is trained on"


def digest(dataset: DatasetConfig) -> str:
    """Changes when the settings or any file of the data set does (by size and modification time); never raises."""
    digest = hashlib.sha256(dataset.model_dump_json().encode())
    try:
        for path in data_files(dataset):
            try:
                status = path.stat()
                digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}\n".encode())
            except (OSError, ValueError):
                digest.update(f"{path}:none\n".encode())
    except (DatasetError, OSError, ValueError) as error:
        digest.update(str(error).encode())
    return digest.hexdigest()
