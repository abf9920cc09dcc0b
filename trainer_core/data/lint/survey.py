"""A walk through a data set that stops at nothing: every image is looked at, and what is broken becomes a finding.

Training refuses a folder that cannot be read and then the first kind of trouble with images (`scan.refuse`); lint takes
the same index of the folder, tells every kind at once, and goes on with what can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ...config import DatasetConfig
from ...errors import DatasetError
from ..captions import encoder_text
from ..clips.header import clip_header, may_move
from ..clips.timing import Timing
from ..header import IMAGE_SUFFIXES, UNREADABLE
from ..index import Index, index
from ..progress import Progress
from .clips import look_at_clip
from .looks import Look, look_at
from .report import Finding
from .tokens import TextTokenizer

if TYPE_CHECKING:
    from ...families.spec import FamilySpec

_READING = re.compile(r"cannot be read as an? (?:image|clip) \((.*)\)")
"""The reason inside what `load_image` and `pictures` say."""


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
    spec: FamilySpec | None = None
    """Of the family, if it is known."""


@dataclass(frozen=True)
class Picture:
    """One image or clip of a data set."""

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


def look_over(dataset: DatasetConfig, progress: Progress, timing: Timing | None = None) -> Survey:
    """Looks at every image and caption of a data set; raises nothing for what it finds there.

    Args:
        timing: how clips are counted; None: they are left out.
    """
    found = Survey(dataset)
    try:
        files = index(dataset, timing)
    except DatasetError as error:
        found.complain("folder", str(error))
        return found
    for problem in files.problems:
        found.complain("folder", problem)
    if not files.problems:
        found.absent, found.left_out = files.absent(), list(files.found.left_out())
    if files.images:
        pictures = [_picture(found, files, key) for key in files.images]
        if timing and timing.rate is None:  # it is not known whether clips are of any use
            idle = [one for one in pictures if not one.captions and one.path.suffix.lower() not in IMAGE_SUFFIXES]
            pictures = [one for one in pictures if one not in idle]
            if idle:
                found.left_out.append(("clips", [one.key for one in idle], "clips without a caption, for video models"))
        _look_at_all(found, pictures, progress, timing is not None)
    return found


def _picture(found: Survey, files: Index, key: str) -> Picture:
    path, repeats = files.images[key], files.repeats(key)
    for beside in files.lacks(key):
        found.lacking.setdefault(beside, []).append(key)
    try:
        captions, own = files.captions(key)
    except DatasetError as error:
        found.complain("unreadable-caption", str(error), key)
        return Picture(path, key, repeats=repeats)
    # while a metadata file is broken it is not known which images have no caption
    return Picture(path, key, captions, own=own or bool(files.metadata.problems), repeats=repeats)


def _look_at_all(found: Survey, pictures: list[Picture], progress: Progress, clips: bool) -> None:
    """Reads all pixels, a few images at a time, and keeps 300 bytes of each."""
    Image.init()  # else the first threads would all do it
    broken: dict[tuple[str, str], list[str]] = {}
    background = found.dataset.background
    # Pillow decodes on all cores at once; a thread more than there are cores hides some waiting for the disk
    pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1)
    try:
        looks = pool.map(lambda picture: (_look_at_clip if clips else _look)(picture.path, background), pictures)
        for number, (picture, look) in enumerate(zip(pictures, looks, strict=True)):
            progress("looking at images", number, len(pictures))
            if isinstance(look, str):
                kind = "image" if picture.path.suffix.lower() in IMAGE_SUFFIXES else "clip"
                broken.setdefault((kind, look), []).append(picture.key)
                found.pictures.append(picture)
            else:
                found.pictures.append(replace(picture, look=look))
    finally:  # `progress` raises to stop the work: what is queued must not be looked at first
        pool.shutdown(cancel_futures=True)
    progress("looking at images", len(pictures), len(pictures))
    for (kind, reason), keys in broken.items():
        message = f"cannot be read as {'an image' if kind == 'image' else 'a clip'}: {reason}. Replace or remove it"
        found.complain(f"unreadable-{kind}", message, *keys)


def _look_at_clip(path: Path, background: str) -> Look | str:
    """As `_look`, of what may be a clip."""

    def look(path: Path, background: str) -> Look:
        clip = clip_header(path) if may_move(path) else None
        return look_at_clip(path, clip, background) if clip else look_at(path, background)

    return _look(path, background, look)


def _look(path: Path, background: str, look: Callable[[Path, str], Look] = look_at) -> Look | str:
    """What an image looks like, or why it cannot be seen."""
    try:
        return look(path, background) if path.stat().st_size else "the file is empty"
    except Image.UnidentifiedImageError:
        return "its content is no image of a known kind"
    except UNREADABLE as error:
        # Pillow counts bytes in it, which would make a reason of its own for every file
        return str(error).partition(" (")[0] or type(error).__name__
    except DatasetError as error:
        inner = _READING.search(str(error))
        return inner[1].partition(" (")[0] if inner else str(error).removeprefix(f"{path}: ")
