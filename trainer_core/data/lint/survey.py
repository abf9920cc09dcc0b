"""A walk through a data set that stops at nothing: every image is looked at, and what is broken becomes a finding.

Training refuses a folder that cannot be read and then the first kind of trouble with images (`scan.refuse`); lint opens
the folder in the same way, tells every kind at once, and goes on with what can be read.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ...config import DatasetConfig
from ...errors import DatasetError
from ..captions import encoder_text
from ..folder import DatasetFolder, data_files, folder_of, kohya_folder
from ..header import IMAGE_SUFFIXES, UNREADABLE
from ..metadata import METADATA_FILES, Metadata, read_metadata
from .looks import Look, look_at
from .report import Finding
from .tokens import TextTokenizer

_READING = re.compile(r"cannot be read as an image \((.*)\)")
"""The reason inside what `load_image` says."""
Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is, and how much there is; raises to stop the work."""


@dataclass(frozen=True)
class Circumstances:
    """What checks know besides the data set."""

    divisor: int
    """Edges of buckets are multiples of this, in pixels."""
    batch_size: int | None = None
    """None: not known, because there is no job."""
    classes: tuple[str, ...] = ()
    """Class words: what the trigger is an example of."""
    preserves_class: bool = False
    """Whether Differential Output Preservation is on."""
    trigger: str | None = None
    """The trigger of the job's training sets, which regularization sets must not hold."""
    style: tuple[str, ...] = ()
    """Words that name the style that is learned."""
    share: float = 0.0
    """Share of each training set that is held out for validation."""
    tokenizers: Sequence[TextTokenizer] = ()


@dataclass(frozen=True)
class Picture:
    """One image file of a data set."""

    path: Path
    key: str
    """Path relative to the data set's folder, with `/`."""
    captions: tuple[str, ...] = ()
    """Verbatim; if it has none of its own, that of its kohya folder or the default one, or nothing."""
    own: bool = True
    """Whether the captions are its own."""
    repeats: int = 1
    look: Look | None = None
    """None if it cannot be read."""


@dataclass
class Survey:
    """A data set as it lies on the disk."""

    dataset: DatasetConfig
    pictures: list[Picture] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    """What kept parts of it from being read."""
    lacking: dict[Path, list[str]] = field(default_factory=dict)
    """By mask or control folder: keys of images that have no counterpart there."""
    absent: list[str] = field(default_factory=list)
    """Images that metadata name and that are not there."""
    left_out: list[tuple[str, list[str], str]] = field(default_factory=list)
    """What lies there and is no part of the data set (`walk.Found.left_out`)."""
    wordless_known: bool = True
    """Whether it is known which images have no caption; not if a metadata file that could hold some is broken."""

    def complain(self, check: str, message: str, *files: str) -> None:
        """Adds an error."""
        self.findings.append(Finding("error", check, files, message, self.folder))

    @property
    def folder(self) -> str:
        """What the user called it."""
        return self.dataset.folder

    @property
    def readable(self) -> list[Picture]:
        """The images that can be trained on."""
        return [picture for picture in self.pictures if picture.look is not None]

    def texts(self) -> Iterator[tuple[Picture, str]]:
        """Every image's own captions as the encoder reads them, trigger included."""
        for picture in self.pictures:
            if picture.own:
                for caption in picture.captions:
                    yield picture, encoder_text(caption, self.dataset)


def look_over(dataset: DatasetConfig, progress: Progress) -> Survey:
    """Looks at every image and caption of a data set; raises nothing for what it finds there."""
    found = Survey(dataset)
    folder = _opened(found)
    if folder is not None:
        found.absent, found.left_out = folder.absent(), list(folder.found.left_out())
        _look_at_all(found, [_picture(found, folder, key) for key in folder.images], progress)
    return found


def _opened(found: Survey) -> DatasetFolder | None:
    """The folder; if something in it is broken that stops training, with as much of it as can be read."""
    dataset = found.dataset
    try:
        return DatasetFolder.of(dataset)
    except DatasetError as error:
        told = str(error)
        found.complain("folder", told)
    images, metadata = dict[str, Path](), Metadata()
    with contextlib.suppress(DatasetError):  # comes when the images are listed already, or there are none
        path = folder_of(dataset)
        beside = [Path(name).expanduser() for name in (dataset.mask_folder, *dataset.control_folders) if name]
        for file in data_files(dataset):
            if not file.is_relative_to(path) or any(file.is_relative_to(folder) for folder in beside):
                continue
            key = file.relative_to(path).as_posix()
            if file.name in METADATA_FILES:
                found.wordless_known = _merged(found, metadata, path, file, told) and found.wordless_known
            elif file.suffix.lower() in IMAGE_SUFFIXES and (not dataset.kohya_folders or kohya_folder(key)[0]):
                images[key] = file
    return DatasetFolder(dataset, path, images, metadata) if images else None


def _merged(found: Survey, metadata: Metadata, folder: Path, table: Path, told: str) -> bool:
    """Adds a metadata file's captions if it can be read; complains otherwise, unless that has been told."""
    try:
        metadata.captions |= read_metadata(folder, [table], found.dataset.caption_column).captions
    except DatasetError as error:
        if str(error) != told:
            found.complain("folder", str(error))
        return False
    return True


def _picture(found: Survey, folder: DatasetFolder, key: str) -> Picture:
    path, repeats = folder.images[key], folder.repeats(key)
    for beside in folder.lacks(key):
        found.lacking.setdefault(beside, []).append(key)
    try:
        captions = folder.own_captions(key)
    except DatasetError as error:
        found.complain("unreadable-caption", str(error), key)
        return Picture(path, key, repeats=repeats)
    if captions:
        return Picture(path, key, captions, repeats=repeats)
    fallback = folder.fallback_caption(key)
    return Picture(path, key, (fallback,) if fallback else (), own=not found.wordless_known, repeats=repeats)


def _look_at_all(found: Survey, pictures: list[Picture], progress: Progress) -> None:
    """Reads all pixels, a few images at a time, and keeps 300 bytes of each."""
    Image.init()  # else the first threads would all do it
    broken: dict[str, list[str]] = {}
    background = found.dataset.background
    # Pillow decodes on all cores at once; a thread more than there are cores hides some waiting for the disk
    pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1)
    try:
        looks = pool.map(lambda picture: _look(picture.path, background), pictures)
        for number, (picture, look) in enumerate(zip(pictures, looks, strict=True)):
            progress("looking at images", number, len(pictures))
            if isinstance(look, str):
                broken.setdefault(look, []).append(picture.key)
                found.pictures.append(picture)
            else:
                found.pictures.append(replace(picture, look=look))
    finally:  # `progress` raises to stop the work: what is queued must not be looked at first
        pool.shutdown(cancel_futures=True)
    progress("looking at images", len(pictures), len(pictures))
    for reason, keys in broken.items():
        found.complain("unreadable-image", f"cannot be read as an image: {reason}. Replace or remove it", *keys)


def _look(path: Path, background: str) -> Look | str:
    """What an image looks like, or why it cannot be seen."""
    try:
        return look_at(path, background) if path.stat().st_size else "the file is empty"
    except Image.UnidentifiedImageError:
        return "its content is no image of a known kind"
    except UNREADABLE as error:
        # Pillow counts bytes in it, which would make a reason of its own for every file
        return str(error).partition(" (")[0] or type(error).__name__
    except DatasetError as error:
        inner = _READING.search(str(error))
        return inner[1].partition(" (")[0] if inner else str(error).removeprefix(f"{path}: ")
