"""Which folders are data sets: one walk through the places where they may lie, by names alone; no file is opened."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...config.data import MAX_CONTROLS
from ..clips.header import CLIP_SUFFIXES
from ..folder import kohya_folder
from ..header import IMAGE_SUFFIXES
from ..walk import is_run, real

CAPTION_SUFFIXES = (".txt", ".caption")
"""Of caption files, the usual ones first."""
_DEEPEST = 6
"""Levels of folders below a place."""
_MOST_ENTRIES = 400_000
"""Entries of folders that are looked at in one walk: a place may be a whole disk."""
_MASKS = re.compile(r"(?:(.+)[ _-])?masks?", re.IGNORECASE)
_CONTROLS = re.compile(r"(?:(.+)[ _-])?(?:controls?|conditioning)[ _-]?\d*", re.IGNORECASE)


@dataclass
class Listed:
    """A folder that holds pictures or clips."""

    folder: Path
    name: str
    """As it is shown: relative to its place, with `/`."""
    pictures: int = 0
    clips: int = 0
    captioned: int = 0
    """Pictures and clips with a caption file beside them; what tables say is not looked up."""
    updated: float = 0.0
    """When a file was last added or removed, in seconds since 1970."""
    suffixes: dict[str, int] = field(default_factory=dict)
    """How many of these captions have which suffix."""
    masks: Path | None = None
    """The folder of its masks, by its name: a sub-folder or neighbour called so."""
    controls: tuple[Path, ...] = ()
    """The folders of its control images, by their names too."""
    kohya: bool = False
    """Whether its pictures lie in sub-folders named `10_name`."""

    @property
    def id(self) -> str:
        """By which requests name it."""
        return folder_id(self.folder)


def folder_id(folder: Path) -> str:
    """A folder as 16 hexadecimal digits, which say nothing of where it lies."""
    return hashlib.sha256(real(folder).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def listed(own: Path, others: Iterable[Path], allowed: Callable[[Path], bool]) -> dict[str, Listed]:
    """The data sets below some places, by id, in the order of their names.

    A folder that holds pictures is one, with all that lies below it; but `own`, where a host puts single pictures, is
    none.

    Args:
        allowed: whether a linked folder's target may be looked at.
    """
    found: dict[str, Listed] = {}
    for place in (own, *others):
        top = _Reader(allowed).read(place)
        whole = _data_set(top, place.name, {}) if top and place != own else None
        for one in [whole] if whole else _below(top, "") if top else ():
            found.setdefault(one.id, one)
    return dict(sorted(found.items(), key=lambda pair: pair[1].name.casefold()))


def listed_alone(folder: Path, name: str) -> Listed | None:
    """One folder with all below it; None if it holds neither pictures nor clips, or is not there."""
    inside = _Reader(lambda _: False).read(folder)
    return _data_set(inside, name, {}) if inside else None


@dataclass
class _Folder:
    """What lies in a folder, by stems and suffixes."""

    path: Path
    subs: dict[str, _Folder] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    captions: dict[str, set[str]] = field(default_factory=lambda: {suffix: set() for suffix in CAPTION_SUFFIXES})
    updated: float = 0.0


class _Reader:
    """Reads folders and those below them; hidden ones, runs and links to where nobody may look are left out."""

    def __init__(self, allowed: Callable[[Path], bool]) -> None:
        self._allowed, self._left, self._seen = allowed, _MOST_ENTRIES, set[str]()

    def read(self, path: Path, depth: int = 0) -> _Folder | None:
        """None if it cannot be read, is there twice, or enough has been looked at."""
        if depth > _DEEPEST or real(path) in self._seen or is_run(path):
            return None
        self._seen.add(real(path))
        seen = _Folder(path)
        try:
            with os.scandir(path) as entries:
                inside = [name for entry in entries if (name := self._add(seen, entry))]
            seen.updated = path.stat().st_mtime
        except (OSError, ValueError):
            return None
        for name in sorted(inside):
            if sub := self.read(path / name, depth + 1):
                seen.subs[name] = sub
        return seen

    def _add(self, seen: _Folder, entry: os.DirEntry[str]) -> str | None:
        """Counts a file; gives the name of a folder."""
        self._left -= 1
        if self._left < 0 or entry.name.startswith("."):
            return None
        if entry.is_dir():
            return entry.name if not entry.is_symlink() or self._allowed(Path(entry.path)) else None
        stem, dot, suffix = entry.name.rpartition(".")
        suffix = dot + suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            seen.pictures.append(stem)
        elif suffix in CLIP_SUFFIXES:
            seen.clips.append(stem)
        elif suffix in seen.captions:
            seen.captions[suffix].add(stem)
        return None


def _below(folder: _Folder, prefix: str) -> Iterator[Listed]:
    for name, sub in folder.subs.items():
        if any(match[1] in folder.subs for match in _roles(name)):
            continue  # another's masks or control images, such as `zorble_masks` beside `zorble`
        made = _data_set(sub, f"{prefix}{name}", folder.subs)
        if made is not None:
            yield made
        else:
            yield from _below(sub, f"{prefix}{name}/")


def _data_set(folder: _Folder, shown: str, neighbours: dict[str, _Folder]) -> Listed | None:
    """A folder that holds pictures or clips itself, or in sub-folders that are named by kohya's rules or captioned."""
    kohya = [sub for name, sub in folder.subs.items() if kohya_folder(f"{name}/_")[1] and (sub.pictures or sub.clips)]
    frames = any(name in stems for name in folder.subs for stems in folder.captions.values())
    if not folder.pictures and not folder.clips and not kohya and not frames:
        return None
    made = Listed(folder.path, shown, kohya=bool(kohya) and not folder.pictures)
    name = folder.path.name
    beside = {
        other[len(name) + 1 :]: sub for other, sub in neighbours.items() if re.match(re.escape(name) + "[ _-]", other)
    }
    others = {**beside, **folder.subs}
    made.masks = next((sub.path for other, sub in others.items() if _MASKS.fullmatch(other)), None)
    made.controls = tuple(sub.path for other, sub in sorted(others.items()) if _CONTROLS.fullmatch(other))[
        :MAX_CONTROLS
    ]
    _count(made, folder)
    return made


def _count(made: Listed, folder: _Folder) -> None:
    if folder.path == made.masks or folder.path in made.controls:
        return
    made.pictures += len(folder.pictures)
    made.clips += len(folder.clips)
    made.updated = max(made.updated, folder.updated)
    stems = [*folder.pictures, *folder.clips]
    made.captioned += sum(any(stem in names for names in folder.captions.values()) for stem in stems)
    for suffix, names in folder.captions.items():
        made.suffixes[suffix] = made.suffixes.get(suffix, 0) + len(names.intersection(stems))
    for sub in folder.subs.values():
        if not sub.path.is_symlink():  # nor does training look into linked folders
            _count(made, sub)


def _roles(name: str) -> list[re.Match[str]]:
    """How a folder's name says that it holds masks or control images."""
    return [match for pattern in (_MASKS, _CONTROLS) if (match := pattern.fullmatch(name))]
