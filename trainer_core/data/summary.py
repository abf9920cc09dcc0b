"""What a data set looks like before anything is trained; light enough to run whenever a user changes a widget."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..config import DatasetConfig, ModelConfig
from ..errors import DatasetError
from .buckets import bucket_sizes
from .captions import with_trigger
from .scan import folder_of, image_files, read_caption, scan

_DEFAULT_DIVISOR = 16


@dataclass(frozen=True)
class DatasetSummary:
    """A data set in numbers and texts."""

    count: int
    """Images."""
    buckets: dict[str, int]
    """How many samples each size has, as "512x768"."""
    captions: list[tuple[str, str]]
    """File and the exact text that the encoder sees when the caption is not dropped."""
    missing_captions: list[str]
    """Files that fall back to the default caption."""
    thumbnails: list[Path]
    """The first images."""
    warnings: list[str]


def summarize(dataset: DatasetConfig, model: ModelConfig | None = None) -> DatasetSummary:
    """Scans a data set.

    Raises:
        DatasetError: for a missing or empty folder, unreadable images, images too small, missing captions.
    """
    divisor = _DEFAULT_DIVISOR
    if model is not None:
        from ..families.registry import family_spec

        divisor = family_spec(model.family).bucket_divisor
    items = scan(dataset)
    buckets: Counter[str] = Counter()
    for item in items:
        try:
            sizes = bucket_sizes(item.width, item.height, dataset.resolutions, divisor)
        except ValueError as error:
            raise DatasetError(f"{item.path}: {error}. Remove or replace it") from None
        buckets.update(f"{width}x{height}" for width, height in sizes)
    silent = [item.key for item in items if read_caption(item.path, dataset.caption_extension) is None]
    return DatasetSummary(
        count=len(items),
        buckets=dict(sorted(buckets.items())),
        captions=[(item.key, with_trigger(item.caption, dataset.trigger, dataset.trigger_placement)) for item in items],
        missing_captions=silent,
        thumbnails=[item.path for item in items[:8]],
        warnings=[f"{len(silent)} images have no caption of their own"] if silent else [],
    )


def digest(dataset: DatasetConfig) -> str:
    """Changes when the settings or any image or caption file does (by size and modification time); never raises."""
    digest = hashlib.sha256(dataset.model_dump_json().encode())
    try:
        for path in image_files(folder_of(dataset)):
            for file in (path, path.with_suffix("." + dataset.caption_extension.lstrip("."))):
                try:
                    status = file.stat()
                    digest.update(f"{file}:{status.st_size}:{status.st_mtime_ns}\n".encode())
                except OSError:
                    digest.update(f"{file}:none\n".encode())
    except (DatasetError, OSError) as error:
        digest.update(str(error).encode())
    return digest.hexdigest()
