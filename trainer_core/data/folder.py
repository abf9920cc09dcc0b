"""A data set's folder: which images there are, and what belongs to each of them. No image is opened here."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DatasetError
from ..reading import is_folder, read_regular
from .header import IMAGE_SUFFIXES
from .metadata import METADATA_FILES, Metadata, read_metadata

CAPTION_LIMIT = 1_000_000
"""Bytes of an image's caption file."""
_DEEPEST = 100
"""Levels of folders in a data set."""
_KOHYA_FOLDER = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class Counterparts:
    """The images of a mask or control folder."""

    folder: Path
    files: dict[str, Path]
    """By path relative to the folder, with `/`, without suffix: the stem that it shares with the data set's image."""


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

    @classmethod
    def of(cls, dataset: DatasetConfig) -> DatasetFolder:
        """Looks for a data set's files.

        Raises:
            DatasetError: for a folder that is missing, cannot be read or holds no images, metadata files that cannot be
                read, and two masks or control images for one image.
        """
        folder = folder_of(dataset)
        images, tables = _walk(folder, _folders_beside(dataset))
        images = {key: path for key, path in images.items() if not dataset.kohya_folders or kohya_folder(key)[0]}
        if not images:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DatasetError(f"{folder}: holds no images ({kinds}). Put the training images there")
        return cls(
            dataset,
            folder,
            images,
            read_metadata(folder, tables, dataset.caption_column),
            _counterparts("mask_folder", dataset.mask_folder, folder) if dataset.mask_folder else None,
            tuple(_counterparts("control_folders", name, folder) for name in dataset.control_folders),
        )

    def own_captions(self, key: str) -> tuple[str, ...]:
        """An image's captions as they were written: those of its caption file, or else of the metadata; or none.

        Raises:
            DatasetError: if the caption file is not UTF-8 text.
        """
        return read_captions(self.images[key], self.dataset) or self.metadata.captions.get(key, ())

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
        named = self.metadata.files.keys() - self.images.keys()
        return sorted(key for key in named if not _is_there(self.path / key))


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
        DatasetError: if the file is no regular file, larger than any caption, or not UTF-8 text.
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
    parts = re.split(r"\r\n|\r|\n", text) if dataset.caption_per_line else [text]
    return tuple(part.strip() for part in parts if part.strip())


def data_files(dataset: DatasetConfig) -> Iterator[Path]:
    """All files that a data set is made of, in a stable order; caption files may not be there.

    Raises:
        DatasetError: if a folder is missing or cannot be read.
    """
    beside = _folders_beside(dataset)
    images, tables = _walk(folder_of(dataset), beside)
    yield from sorted(tables)
    for path in images.values():
        yield path
        yield _caption_file(path, dataset)
    for folder in beside:
        yield from _walk(folder)[0].values()


def _caption_file(image: Path, dataset: DatasetConfig) -> Path:
    return image.with_suffix("." + dataset.caption_extension.lstrip("."))


def _counterparts(setting: str, name: str, targets: Path) -> Counterparts:
    folder = _expanded(name)
    if is_folder(folder) and _real(folder) == _real(targets):
        raise DatasetError(f"{setting}: {folder} is the data set's own folder. Give the images' counterparts their own")
    try:
        images, _ = _walk(folder)
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


def _walk(folder: Path, without: Collection[Path] = ()) -> tuple[dict[str, Path], list[Path]]:
    """Images by their sorted keys, and metadata files, of a folder and those in it; neither hidden nor linked folders.

    Raises:
        DatasetError: if there is no such folder, or one cannot be read.
    """
    if not is_folder(folder):
        raise DatasetError(f"{folder}: there is no such folder. Check the data set's `folder`")
    left_out = {_real(path) for path in without if is_folder(path)}
    images: dict[str, Path] = {}
    tables: list[Path] = []
    for key, path in _files(folder, "", left_out):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if any("\ud800" <= letter <= "\udfff" for letter in key):  # bytes that are no UTF-8, in Python's disguise
                raise DatasetError(f"{folder}: the name of {key!a} is no valid text. Rename the file")
            images[key] = path
        elif path.name in METADATA_FILES:
            tables.append(path)
    return dict(sorted(images.items())), tables


def _files(folder: Path, prefix: str, left_out: set[str]) -> Iterator[tuple[str, Path]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if prefix.count("/") >= _DEEPEST:
                        raise DatasetError(f"{folder}: holds folders more than {_DEEPEST} levels deep")
                    if not left_out or _real(entry.path) not in left_out:
                        yield from _files(folder / entry.name, f"{prefix}{entry.name}/", left_out)
                elif entry.is_file():
                    yield prefix + entry.name, folder / entry.name
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({error.strerror or error})") from None


def _is_there(path: Path) -> bool:
    """Whether there is anything; False for names that no file system takes."""
    try:
        return path.exists()
    except OSError:
        return False


def _real(path: str | Path) -> str:
    """A folder under the one name by which it can be compared."""
    return os.path.normcase(os.path.realpath(path))


def _stem(key: str) -> str:
    """A key without its suffix."""
    return key[: key.rindex(".")]


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{name}: {error}") from None
