"""What a data set looks like before anything is trained; light enough to run whenever a user changes a widget."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import DatasetConfig
from ..errors import DatasetError
from .buckets import DEFAULT_DIVISOR
from .captions import PLACEHOLDER, encoder_text
from .clips.header import ClipHeader
from .clips.timing import Timing, timing_of
from .folder import data_files, kohya_folder
from .scan import Scan, examine, refuse, sizes_of, windows_of
from .text import some

if TYPE_CHECKING:
    from ..families.spec import FamilySpec


@dataclass(frozen=True)
class DatasetSummary:
    """A data set in numbers and texts."""

    count: int
    """Images, and clips where these are trained on, or may be."""
    buckets: dict[str, int]
    """How many samples each size has, as "512x768", or "512x768x33" of 33 frames."""
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
    """The first images and clips."""
    warnings: list[str]
    clips: int = 0
    """How many of them are clips."""
    seconds: float = 0.0
    """How long the clips are together."""
    placeholders: int = 0
    """Captions that hold `[trigger]`."""


def summarize(dataset: DatasetConfig, spec: FamilySpec | None = None) -> DatasetSummary:
    """Scans a data set; while it is not known for which family, its clips count as well.

    Args:
        spec: of the base, whose sizes and frames count.

    Raises:
        DatasetError: for a missing or empty folder, unreadable images, images too small, missing captions, masks or
            control images.
    """
    divisor, timing = spec.bucket_divisor if spec else DEFAULT_DIVISOR, timing_of(dataset, spec)
    found = examine(dataset, timing)
    refuse(found)
    items = found.items
    buckets: Counter[str] = Counter()
    for item in items:
        sizes = [f"{width}x{height}" for width, height in sizes_of(item, dataset, divisor)]
        frames = [f"x{frames}" if item.clip else "" for frames, _ in windows_of(item, dataset, timing)]
        buckets.update(size + window for size in sizes for window in frames)
    clips = [item.clip for item in items if item.clip]
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
        clips=len(clips),
        seconds=sum(_seconds(clip, timing) for clip in clips),
        placeholders=sum(PLACEHOLDER in caption for item in items for caption in item.captions),
    )


def _seconds(clip: ClipHeader, timing: Timing | None) -> float:
    """How long a clip is; a frame folder's pictures are frames at the rate that is trained at."""
    rate = timing.rate if timing else None
    return (float(len(clip.pts) / rate) if rate else 0.0) if clip.seconds is None else clip.seconds


def _warnings(found: Scan, dataset: DatasetConfig) -> Iterator[str]:
    """What a user should know and nothing is wrong with."""
    if found.silent:
        yield f"{len(found.silent)} images have no caption of their own"
    for _, keys, what in found.index.found.left_out():
        yield f"{some(keys)}: {what}"
    if found.doubtful:
        yield f"clips that cannot be trained on as they are: {some(found.doubtful)}"
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
