"""A data set's folder: how its files are named, and what its caption files say."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ..config import DatasetConfig
from ..content import read_once
from ..errors import DatasetError
from ..reading import read_regular
from .clips.header import MEDIA_SUFFIXES
from .text import NO_TEXT, is_text
from .walk import walk

CAPTION_LIMIT = 1_000_000
"""Bytes of an image's caption file."""
_KOHYA_FOLDER = re.compile(r"(\d+)_(.+)")


def kohya_folder(key: str) -> tuple[int, str | None]:
    """Repeats and name if an image lies in a folder such as `10_name` directly in the data set's own; else (1, None).

    With 0 repeats an image is left out, as in kohya's scripts.
    """
    first, inside, _ = key.partition("/")
    match = _KOHYA_FOLDER.fullmatch(first) if inside else None
    return (int(match[1]), match[2].strip() or None) if match else (1, None)


def read_captions(image: Path, dataset: DatasetConfig) -> tuple[str, ...]:
    """The captions in the file beside an image, as they were written; none if it is missing or empty.

    Raises:
        DatasetError: if the file is no regular file, larger than any caption, not UTF-8, or holds what is no text.
    """
    text = caption_text(caption_file(image, dataset))
    parts = re.split(r"\r\n|\r|\n", text) if dataset.caption_per_line else [text]
    return tuple(part.strip() for part in parts if part.strip())


def data_files(dataset: DatasetConfig) -> Iterator[Path]:
    """All files that a data set is made of, in a stable order; caption files may not be there.

    Raises:
        DatasetError: if a folder is missing or cannot be read.
    """
    beside = folders_beside(dataset)
    folder = expanded(dataset.folder)
    found = walk(folder, beside)
    yield from sorted(found.tables)
    for path in found.images.values():
        yield path
        yield caption_file(path, dataset)
    for path in (*found.clips.values(), *(folder / key for key in found.pictures if key.lower().endswith(".gif"))):
        yield path
        yield caption_file(path, dataset)
    for path in sorted({path.parent for path in found.images.values()} - {folder}):  # one of frames is a clip
        yield caption_file(path, dataset)
    for other in beside:
        also = walk(other)
        yield from (*also.images.values(), *also.clips.values())


def folders_beside(dataset: DatasetConfig) -> list[Path]:
    """Folders whose images are not trained on, even where they lie inside the data set's own.

    Raises:
        DatasetError: as `expanded` does.
    """
    return [expanded(name) for name in (dataset.mask_folder, *dataset.control_folders) if name]


def expanded(name: str) -> Path:
    """A folder, `~` resolved.

    Raises:
        DatasetError: for the home of a user that there is not.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{name}: {error}") from None


def is_there(path: Path) -> bool:
    """Whether there is anything; False for names that no file system takes."""
    try:
        return path.exists()
    except OSError:
        return False


@read_once
def caption_text(path: Path) -> str:
    """A caption file's text as it was written, which is empty if there is none.

    Raises:
        DatasetError: as `read_captions` does.
    """
    try:
        text = read_regular(path, CAPTION_LIMIT).decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8 text. Save it as UTF-8") from None
    except OSError as error:
        raise DatasetError(f"{path}: the caption cannot be read ({error.strerror or error})") from None
    if not is_text(text):  # UTF-16 without its mark, mostly
        raise DatasetError(f"{path}: {NO_TEXT}. Save it as UTF-8")
    return text


def caption_file(image: Path, dataset: DatasetConfig) -> Path:
    """The file beside an image, a clip or a frame folder, which may write its accents in another way than that does."""
    stem = image.stem if image.suffix.lower() in MEDIA_SUFFIXES else image.name  # a folder's name has no suffix
    path = image.with_name(f"{stem}.{dataset.caption_extension.lstrip('.')}")
    if path.name.isascii() or is_there(path):
        return path
    forms = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
    return next((form for form in forms if is_there(form)), path)
