"""A data set's folder: which images there are, and what belongs to each of them. No image is opened here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DatasetError
from ..reading import is_folder, read_regular
from .header import IMAGE_SUFFIXES
from .metadata import Metadata, read_metadata
from .text import NO_TEXT, composed, is_text
from .walk import Found, real, walk

CAPTION_LIMIT = 1_000_000
"""Bytes of an image's caption file."""
_KOHYA_FOLDER = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class Counterparts:
    """The images of a mask or control folder."""

    folder: Path
    files: dict[str, Path]
    """By the stem that each shares with the data set's image (`_stem`)."""


@dataclass(frozen=True)
class DatasetFolder:
    """The files of a data set. Images go by their key: the path relative to the folder, with `/`."""

    dataset: DatasetConfig
    path: Path
    images: dict[str, Path]
    """By key, sorted by it."""
    metadata: Metadata
    masks: Counterparts | None = None
    controls: tuple[Counterparts, ...] = ()
    found: Found = field(default_factory=Found)
    """Everything that lies there, and what of it is left out."""

    @classmethod
    def of(cls, dataset: DatasetConfig) -> DatasetFolder:
        """Looks for a data set's files.

        Raises:
            DatasetError: for a folder that is missing, cannot be read or holds no images, metadata files that cannot be
                read, and two masks or control images for one image.
        """
        folder = folder_of(dataset)
        found = walk(folder, _folders_beside(dataset))
        images = {key: path for key, path in found.images.items() if not dataset.kohya_folders or kohya_folder(key)[0]}
        if not images:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            there = "".join(f"; there are {some(keys)}: {what}" for _, keys, what in found.left_out())
            raise DatasetError(f"{folder}: holds no images ({kinds}). Put the training images there{there}")
        return cls(
            dataset,
            folder,
            images,
            read_metadata(folder, found.tables, dataset.caption_column),
            _counterparts("mask_folder", dataset.mask_folder, folder) if dataset.mask_folder else None,
            tuple(_counterparts("control_folders", name, folder) for name in dataset.control_folders),
            found,
        )

    def own_captions(self, key: str) -> tuple[str, ...]:
        """An image's captions as they were written: those of its caption file, or else of the metadata; or none.

        Raises:
            DatasetError: if the caption file is not UTF-8 text.
        """
        return read_captions(self.images[key], self.dataset) or self.metadata.captions.get(composed(key), ())

    def fallback_caption(self, key: str) -> str | None:
        """The caption of an image that has none: the name of its kohya folder, or the default caption."""
        return (kohya_folder(key)[1] if self.dataset.kohya_folders else None) or self.dataset.default_caption

    def repeats(self, key: str) -> int:
        """How many times as often as others an image is drawn."""
        return kohya_folder(key)[0] if self.dataset.kohya_folders else 1

    def mask(self, key: str) -> Path | None:
        """An image's mask; None without masks, or if it lacks."""
        return self.masks.files.get(_stem(key)) if self.masks else None

    def control_images(self, key: str) -> tuple[Path, ...]:
        """An image's control images, in the order of their folders; those that lack are left out."""
        found = (control.files.get(_stem(key)) for control in self.controls)
        return tuple(path for path in found if path is not None)

    def lacks(self, key: str) -> list[Path]:
        """The mask and control folders that hold no counterpart of an image."""
        wanted = [*([self.masks] if self.masks else []), *self.controls]
        return [one.folder for one in wanted if _stem(key) not in one.files]

    def absent(self) -> list[str]:
        """Images that metadata name and that are not there."""
        there = {composed(key) for key in self.images}
        return sorted(
            key for key in self.metadata.files if composed(key) not in there and not _is_there(self.path / key)
        )


def folder_of(dataset: DatasetConfig) -> Path:
    """A data set's folder, `~` resolved.

    Raises:
        DatasetError: for the home of a user that there is not.
    """
    return _expanded(dataset.folder)


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
    path = _caption_file(image, dataset)
    try:
        text = read_regular(path, CAPTION_LIMIT).decode("utf-8-sig")
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8 text. Save it as UTF-8") from None
    except OSError as error:
        raise DatasetError(f"{path}: the caption cannot be read ({error.strerror or error})") from None
    if not is_text(text):  # UTF-16 without its mark, mostly
        raise DatasetError(f"{path}: {NO_TEXT}. Save it as UTF-8")
    parts = re.split(r"\r\n|\r|\n", text) if dataset.caption_per_line else [text]
    return tuple(part.strip() for part in parts if part.strip())


def data_files(dataset: DatasetConfig) -> Iterator[Path]:
    """All files that a data set is made of, in a stable order; caption files may not be there.

    Raises:
        DatasetError: if a folder is missing or cannot be read.
    """
    beside = _folders_beside(dataset)
    found = walk(folder_of(dataset), beside)
    yield from sorted(found.tables)
    for path in found.images.values():
        yield path
        yield _caption_file(path, dataset)
    for folder in beside:
        yield from walk(folder).images.values()


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _caption_file(image: Path, dataset: DatasetConfig) -> Path:
    """The file beside an image, which may write its accents in another way than the image's own name does."""
    path = image.with_suffix("." + dataset.caption_extension.lstrip("."))
    if path.name.isascii() or _is_there(path):
        return path
    forms = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
    return next((form for form in forms if _is_there(form)), path)


def _counterparts(setting: str, name: str, targets: Path) -> Counterparts:
    folder = _expanded(name)
    if is_folder(folder) and real(folder) == real(targets):
        raise DatasetError(f"{setting}: {folder} is the data set's own folder. Give the images' counterparts their own")
    try:
        images = walk(folder).images
    except DatasetError as error:
        raise DatasetError(f"{setting}: {error}") from None
    files: dict[str, Path] = {}
    for key, path in images.items():
        if _stem(key) in files:
            other = files[_stem(key)].name
            raise DatasetError(f"{setting}: {path} and {other} would both belong to one image. Remove one of them")
        files[_stem(key)] = path
    return Counterparts(folder, files)


def _folders_beside(dataset: DatasetConfig) -> list[Path]:
    """Folders whose images are not trained on, even where they lie inside the data set's own."""
    return [_expanded(name) for name in (dataset.mask_folder, *dataset.control_folders) if name]


def _is_there(path: Path) -> bool:
    """Whether there is anything; False for names that no file system takes."""
    try:
        return path.exists()
    except OSError:
        return False


def _stem(key: str) -> str:
    """A key without its suffix, by which an image and its counterparts find each other."""
    return composed(key[: key.rindex(".")])


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{name}: {error}") from None
