"""A walk through a folder: the images and metadata files in it, and what is left out, which users are told."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError
from ..reading import is_folder
from .clips.header import CLIP_SUFFIXES
from .header import IMAGE_SUFFIXES
from .metadata import METADATA_FILES
from .text import is_text

OTHER_PICTURES = (
    frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".psd", ".svg", ".tga", ".tif"})
    | frozenset({".tiff", ".exr", ".hdr", ".ppm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"})
) - IMAGE_SUFFIXES
"""Suffixes of pictures that are not read, in lower case. Pillow reads some of them, but by libraries (libtiff) that
are the usual way into a program with a picture; GIFs are read as clips, for video models."""
OTHER_CLIPS = frozenset({".avi", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".wmv"})
"""Suffixes of clips that are not read, in lower case."""
_DEEPEST = 100
"""Levels of folders in a data set."""


@dataclass
class Found:
    """What a folder and those in it hold; neither hidden nor linked folders are walked through."""

    images: dict[str, Path] = field(default_factory=dict)
    """By key (path relative to the folder, with `/`), sorted by it."""
    clips: dict[str, Path] = field(default_factory=dict)
    """The same of video files, which families of pictures leave out."""
    tables: list[Path] = field(default_factory=list)
    """Metadata files."""
    pictures: list[str] = field(default_factory=list)
    """Keys of pictures of kinds that are not read."""
    other_clips: list[str] = field(default_factory=list)
    """Keys of clips of kinds that are not read."""
    runs: list[str] = field(default_factory=list)
    """Keys of folders of training runs, whose previews are no training data."""
    links: list[str] = field(default_factory=list)
    """Keys of links that lead to nothing, or in a circle."""
    folders: list[Path] = field(default_factory=list)
    """All folders that were looked through: where none of them has changed, no file was added or removed."""

    def left_out(self) -> Iterator[tuple[str, list[str], str]]:
        """Name of the check, files, and what a user should know of them."""
        if self.pictures:
            yield "other-pictures", self.pictures, "pictures of a kind that is not read. Convert them to PNG or JPEG"
        if self.clips:
            yield "clips", [*self.clips], "clips, which only video models train on: left out"
        if self.other_clips:
            yield "other-clips", self.other_clips, "clips of a kind that is not read. Convert them to MP4"
        if self.runs:
            yield "run-folder", self.runs, "folders of training runs, whose previews are not trained on: left out"
        if self.links:
            yield "dead-link", self.links, "links that lead to nothing or in a circle: left out. Mend or remove them"


def walk(folder: Path, without: Collection[Path] = ()) -> Found:
    """Looks through a folder, except for the folders of `without` and those of training runs.

    Raises:
        DatasetError: if there is no such folder, one cannot be read, or an image's name is no text.
    """
    if not is_folder(folder):
        raise DatasetError(f"{folder}: there is no such folder. Check the data set's `folder`")
    found = Found()
    _collect(found, folder, "", {real(path) for path in without if is_folder(path)})
    found.images, found.clips = (dict(sorted(files.items())) for files in (found.images, found.clips))
    for keys in (found.pictures, found.other_clips, found.runs, found.links):
        keys.sort()
    return found


def real(path: str | Path) -> str:
    """A folder under the one name by which it can be compared."""
    return os.path.normcase(os.path.realpath(path))


def _collect(found: Found, folder: Path, prefix: str, left_out: set[str]) -> None:
    found.folders.append(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                key, path = prefix + entry.name, folder / entry.name
                if not entry.is_dir(follow_symlinks=False):
                    _collect_file(found, entry, key, path)
                elif left_out and real(path) in left_out:
                    continue
                elif is_run(path):
                    found.runs.append(key)
                elif prefix.count("/") >= _DEEPEST:
                    raise DatasetError(f"{folder}: holds folders more than {_DEEPEST} levels deep")
                else:
                    _collect(found, path, f"{key}/", left_out)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({error.strerror or error})") from None


def _collect_file(found: Found, entry: os.DirEntry[str], key: str, path: Path) -> None:
    if entry.is_symlink() and not os.path.exists(path):  # noqa: PTH110 - False for circles too
        found.links.append(key)
    elif not entry.is_file():  # a pipe, a device, a linked folder
        return
    elif path.suffix.lower() in IMAGE_SUFFIXES | CLIP_SUFFIXES:
        if not is_text(key):  # bytes that are no UTF-8, in Python's disguise
            raise DatasetError(f"{path.parent}: the name of {key!a} is no valid text. Rename the file")
        (found.images if path.suffix.lower() in IMAGE_SUFFIXES else found.clips)[key] = path
    elif path.suffix.lower() in OTHER_PICTURES:
        found.pictures.append(key)
    elif path.suffix.lower() in OTHER_CLIPS:
        found.other_clips.append(key)
    elif path.name in METADATA_FILES:
        found.tables.append(path)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run; its `run.json` alone could be anybody's."""
    return (folder / "run.json").is_file() and (folder / "job.yaml").is_file()
