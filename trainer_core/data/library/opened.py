"""A data set that is looked at: its pictures by id, in pages, with captions as they can be edited."""

from __future__ import annotations

import hashlib
import stat
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import DatasetConfig
from ...errors import DatasetError, NotListed
from ..buckets import DEFAULT_DIVISOR, bucket_sizes
from ..clips.header import CLIP_SUFFIXES, ClipHeader, clip_header, may_move
from ..clips.timing import timing_of
from ..folder import caption_file, caption_text
from ..header import UNREADABLE, Header, read_header
from ..index import Index, index
from ..text import composed
from .listing import CAPTION_SUFFIXES

_SETTLED = 2.0
"""Seconds after which another change of a folder is sure to give it another time, on every file system."""
_PLAYED = frozenset({".mp4", ".webm", ".gif", ".webp"})
"""Clips that browsers play as they are."""


@dataclass
class OpenSet:
    """A look at a data set. Its files' names are those of that moment; what they hold is read when it is asked for."""

    id: str
    name: str
    index: Index
    looked: float = field(default_factory=time.time)
    removed: dict[str, str] = field(default_factory=dict)
    """What caption files said that were removed, by key: a caption that comes back has its line ends."""

    def __post_init__(self) -> None:
        self.keys: dict[str, str] = {item_id(key): key for key in self.index.images}
        """By item id."""
        self._times = self._changed()

    @classmethod
    def of(cls, identity: str, name: str, config: DatasetConfig) -> OpenSet:
        """Looks through the folder.

        Raises:
            DatasetError: if it is missing or cannot be read.
        """
        now = time.time()
        return cls(identity, name, index(config, timing_of(config, None)), now)

    @property
    def config(self) -> DatasetConfig:
        """The settings that it is read by."""
        return self.index.dataset

    @property
    def fresh(self) -> bool:
        """Whether no file was added or removed since it was looked at, as far as can be known."""
        now = self._changed()
        return now == self._times and all(abs(self.looked - one / 1e9) > _SETTLED for one in now)

    def _changed(self) -> list[int]:
        beside = [one.folder for one in (self.index.masks, *self.index.controls) if one]
        times = []
        for path in (*self.index.found.folders, *beside, *self.index.found.tables):
            try:
                times.append(path.stat().st_mtime_ns)
            except OSError:
                times.append(0)
        return times

    def key(self, item: object) -> str:
        """The key of an item's id.

        Raises:
            NotListed: if there is no such picture.
        """
        if not isinstance(item, str) or item not in self.keys:
            raise NotListed(f"{self.name}: there is no such picture (any more)")
        return self.keys[item]

    def path(self, item: object, what: str = "picture") -> Path | None:
        """The file of a picture or clip, of its mask, or of its first to third control image (`control1`…).

        None if it has none.

        Raises:
            NotListed: if there is no such picture.
        """
        key = self.key(item)
        if what == "picture":
            return self.index.images[key]
        if what == "mask":
            return self.index.mask(key)
        controls = {f"control{number}": path for number, path in enumerate(self.index.control_images(key), 1)}
        return controls.get(what)

    def ordered(self, missing_first: bool) -> list[str]:
        """Item ids by name; if wished, those first that seem to have no caption."""
        items = list(self.keys)
        return sorted(items, key=lambda item: self._seems_captioned(self.keys[item])) if missing_first else items

    def _seems_captioned(self, key: str) -> bool:
        """By the caption file's size: its text would take ten times as long."""
        if composed(key.rstrip("/")) in self.index.metadata.captions:
            return True
        try:
            status = caption_file(self.index.images[key], self.config).lstat()
            return stat.S_ISREG(status.st_mode) and status.st_size > 0  # a link is not read, see `written`
        except OSError:
            return False

    def row(self, item: str) -> dict[str, Any]:
        """What a page shows of a picture."""
        key = self.key(item)
        path = self.index.images[key]
        written = self.written(key)
        row: dict[str, Any] = {
            "item": item,
            "file": key,
            "caption": written.text,
            "own": written.own,
            "fallback": next(iter(self.index.captions(key)[0]), None) if not (written.own or written.problem) else None,
            "editable": written.editable,
            "problem": written.problem,
            "mask": self.index.mask(key) is not None,
            "controls": len(self.index.control_images(key)),
            "clip": None,
        }
        try:
            header = header_of(path)
            row |= {"width": header.width, "height": header.height, "version": _version(path)}
            if isinstance(header, ClipHeader):
                row["clip"] = {
                    "frames": len(header.pts),
                    "seconds": header.seconds,
                    "video": path.suffix.lower() in CLIP_SUFFIXES,
                    "plays": path.suffix.lower() in _PLAYED,
                }
        except UNREADABLE as error:
            row |= {"width": 0, "height": 0, "version": "0", "problem": f"cannot be read ({error})"}
        return row

    def written(self, key: str) -> Written:
        """A picture's own caption, and whether it can be written."""
        path = caption_file(self.index.images[key], self.config)
        of_table = self.index.metadata.captions.get(composed(key.rstrip("/")), ())
        try:
            if path.is_symlink():  # it may lead anywhere, and is nothing of ours to write through
                return Written(path, "", False, "the caption file is a link to another file")
            text = as_shown(caption_text(path))
        except DatasetError as error:
            return Written(path, "", False, str(error))
        if path.suffix.lower() not in CAPTION_SUFFIXES:
            return Written(path, text, bool(text), f"files of the kind {path.suffix} are not written from a page")
        if not text and len(of_table) > 1:
            return Written(path, "\n".join(of_table), True, "several captions in a metadata file are not edited here")
        # a caption file beside the picture wins over the table, so that writing one is all that an edit takes
        return Written(path, text or next(iter(of_table), ""), bool(text or of_table), None, editable=True)

    def summary(self) -> dict[str, Any]:
        """Counts and sizes; reads every file's header, and every caption."""
        buckets: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        captioned = clips = broken = small = 0
        for key, path in self.index.images.items():
            captioned += self.written(key).own
            try:
                header = header_of(path)
            except UNREADABLE:
                broken += 1
                continue
            clips += isinstance(header, ClipHeader)
            sizes[f"{header.width}x{header.height}"] += 1
            try:
                own = bucket_sizes(header.width, header.height, self.config.resolutions, DEFAULT_DIVISOR)
            except ValueError:
                small += 1
                continue
            buckets.update(f"{width}x{height}" for width, height in own)
        return {
            "count": len(self.keys),
            "clips": clips,
            "captioned": captioned,
            "broken": broken,
            "too_small": small,
            "masks": sum(self.index.mask(key) is not None for key in self.index.images),
            "controls": len(self.index.controls),
            "sizes": dict(sizes.most_common(20)),
            "buckets": dict(sorted(buckets.items())),
            "resolutions": list(self.config.resolutions),
            "trigger": self.config.trigger or "",
            "placement": self.config.trigger_placement,
            "problems": list(self.index.problems),
        }


@dataclass(frozen=True)
class Written:
    """A picture's caption as it stands in its file, or else in a metadata file."""

    file: Path
    """Where it is, or would be, written."""
    text: str
    own: bool
    """Whether there is any; not that of its folder or of the data set."""
    problem: str | None
    """Why it cannot be edited here."""
    editable: bool = False


def header_of(path: Path) -> Header:
    """That of a picture or a clip.

    Raises:
        UNREADABLE: if it is neither.
    """
    clip = clip_header(path) if may_move(path) else None
    return clip or read_header(path)


def as_shown(text: str) -> str:
    """A caption file's text as a page shows it: the line ends of every system are one."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def item_id(key: str) -> str:
    """A picture's key as 16 hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _version(path: Path) -> str:
    """Changes with the file: pages keep a picture under this."""
    return f"{path.stat().st_mtime_ns:x}"
