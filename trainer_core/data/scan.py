"""Folder → items: which images there are, how large they are, what their captions say, and what goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DatasetError
from .buckets import Size, bucket_sizes
from .clips.header import ClipHeader, clip_header, may_move
from .clips.timing import Timing, lengths, resampled, starts
from .header import UNREADABLE, read_header
from .index import Index, index
from .text import some


@dataclass(frozen=True)
class Item:
    """One image or clip of a data set."""

    path: Path
    key: str
    """Path relative to the data set's folder, with `/`: the item's identity in everything random."""
    width: int
    """In pixels as seen, EXIF rotation applied."""
    height: int
    captions: tuple[str, ...]
    """As they were written; at least one."""
    repeats: int = 1
    """How many times as often as others of its set it is drawn."""
    mask: Path | None = None
    controls: tuple[Path, ...] = ()
    """Control images, in the order of their folders."""
    clip: ClipHeader | None = None
    """None: a picture."""


@dataclass(frozen=True)
class Sample:
    """An item at one of its sizes; of a clip, a window of it."""

    dataset: int
    item: Item
    size: Size
    frames: int = 1
    """At the rate that is trained at."""
    start: int | None = 0
    """Its first frame, at that rate; None where each draw chooses one (`clip_part` random)."""
    fps: float | None = None
    """That rate, where it is not the model's own."""

    @property
    def key(self) -> str:
        """Identity in everything random."""
        window = f"x{self.frames}" + (f"+{self.start}" if self.start else "") if self.item.clip else ""
        return f"{self.dataset}/{self.item.key}@{self.size[0]}x{self.size[1]}{window}"

    @property
    def shape(self) -> tuple[float, ...]:
        """What samples of a batch share: width and height; where it counts, also rate and frames, and its controls'."""
        if self.frames == 1 and self.fps is None:
            return self.size
        return (*self.size, self.frames, self.fps or 0, *map(self.frames_of, self.item.controls))

    def frames_of(self, path: Path) -> int:
        """How many frames of one of its files are seen: one, if it is a picture or the sample a still."""
        return self.frames if self.frames > 1 and clip_header(path) else 1


@dataclass
class Scan:
    """What a data set's images are, and what keeps them from being trained on."""

    index: Index
    items: list[Item] = field(default_factory=list)
    """Images that can be opened; one without any caption has an empty one, one without its mask has none."""
    broken: list[str] = field(default_factory=list)
    """Images that cannot be opened, each with the reason."""
    silent: list[str] = field(default_factory=list)
    """Keys of images without a caption of their own: they take that of their kohya folder, or the default caption."""
    wordless: list[str] = field(default_factory=list)
    """Keys of those for which there is neither."""
    unmatched: list[str] = field(default_factory=list)
    """Keys of images that lack their mask or a control image, each with the folder where it was looked for."""
    transparent: int = 0
    """How many images have transparency."""
    doubtful: list[str] = field(default_factory=list)
    """Clips that cannot be read or have no caption, each with what is wrong, while it is not known if they matter."""


def scan(dataset: DatasetConfig, timing: Timing | None = None) -> list[Item]:
    """Reads a data set's images' sizes and captions; decodes no pixels. Without a timing, clips are left out.

    Raises:
        DatasetError: as `examine` and `refuse` do.
    """
    found = examine(dataset, timing)
    refuse(found)
    return found.items


def examine(dataset: DatasetConfig, timing: Timing | None = None) -> Scan:
    """Reads a data set's folder; what is wrong with single images is told instead of raised.

    Raises:
        DatasetError: for a missing or empty folder, and for caption and metadata files that cannot be read.
    """
    found = Scan(index(dataset, timing))
    if found.index.problems:
        raise DatasetError(found.index.problems[0])
    return look_through(found, timing)


def look_through(found: Scan, timing: Timing | None) -> Scan:
    """Reads what an index without problems lists.

    Raises:
        DatasetError: for caption files that cannot be read.
    """
    for key, path in found.index.images.items():
        clip, doubtful = None, timing is not None and timing.rate is None and may_move(path)
        try:
            clip = clip_header(path) if timing and may_move(path) else None
            header = clip or read_header(path)
        except UNREADABLE as error:
            (found.doubtful if doubtful else found.broken).append(f"{key} ({error})")
            continue
        captions, own = found.index.captions(key)
        if doubtful and clip and not captions:
            found.doubtful.append(f"{key} (no caption)")
            continue
        found.silent += [] if own else [key]
        found.wordless += [] if captions else [key]
        found.unmatched += [f"{key} in {beside}" for beside in found.index.lacks(key)]
        found.transparent += header.transparent
        also = (found.index.repeats(key), found.index.mask(key), found.index.control_images(key))
        found.items.append(Item(path, key, header.width, header.height, captions or ("",), *also, clip))
    return found


def refuse(found: Scan) -> None:
    """Checks that a data set can be trained on.

    Raises:
        DatasetError: if there are images that cannot be opened, have no caption and no default one, or lack their mask
            or a control image; one message names them all.
    """
    folder, dataset = found.index.path, found.index.dataset
    if found.broken:
        kind = "an image or a clip" if any(map(may_move, found.index.images.values())) else "an image"
        raise DatasetError(f"{folder}: {some(found.broken)} cannot be read as {kind}. Replace or remove it")
    if found.wordless:
        column, columns = dataset.caption_column, found.index.metadata.columns
        there = f" (which has: {', '.join(sorted(columns))})" if columns and column not in columns else ""
        raise DatasetError(
            f"{folder}: {some(found.wordless)} has no caption. Write one into a "
            f"`.{dataset.caption_extension.lstrip('.')}` file of the same name beside it or into the column `{column}` "
            f"of a metadata.jsonl or metadata.csv{there}, or set `default_caption`"
        )
    if found.unmatched:
        raise DatasetError(
            f"{folder}: nothing found for {some(found.unmatched)}. Put an image of the same name there (its suffix may "
            "differ), or remove the one that has none"
        )


def windows_of(item: Item, dataset: DatasetConfig, timing: Timing | None) -> list[tuple[int, int | None]]:
    """In how many frames an item is trained on, each time with the first one, at the rate that is trained at."""
    if timing is None or item.clip is None:
        return [(1, 0)]
    count = len(resampled(item.clip, timing.rate))
    return [
        (length, start)
        for length in lengths(count, dataset.frames, timing.step)
        for start in starts(count, length, dataset.clip_part)
    ]


def sizes_of(item: Item, dataset: DatasetConfig, divisor: int) -> list[Size]:
    """An item's bucket sizes at the data set's resolutions.

    Raises:
        DatasetError: if the image is smaller than one unit of the divisor.
    """
    try:
        return bucket_sizes(item.width, item.height, dataset.resolutions, divisor)
    except ValueError as error:
        raise DatasetError(f"{item.path}: {error}. Remove or replace it") from None
