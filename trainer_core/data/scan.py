"""Folder → items: which images there are, how large they are, and what their captions say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..config import DatasetConfig
from ..errors import DatasetError
from .buckets import Size

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are no images, or are broken, or are bombs."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True)
class Item:
    """One image of a data set."""

    path: Path
    key: str
    """Path relative to the data set's folder, with `/`: the item's identity in everything random."""
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Sample:
    """An item at one of its sizes."""

    dataset: int
    item: Item
    size: Size

    @property
    def key(self) -> str:
        """Identity in everything random."""
        return f"{self.dataset}/{self.item.key}@{self.size[0]}x{self.size[1]}"


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, in a stable order; folders and files that begin with a dot are passed over.

    Raises:
        DatasetError: if there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder. Check the data set's `folder`")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not _hidden(path.relative_to(folder)) and path.is_file()
    ]
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DatasetError(f"{folder}: holds no images ({kinds}). Put the training images there")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def folder_of(dataset: DatasetConfig) -> Path:
    """A data set's folder, `~` resolved.

    Raises:
        DatasetError: for the home of a user that there is not.
    """
    try:
        return Path(dataset.folder).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{dataset.folder}: {error}") from None


def scan(dataset: DatasetConfig) -> list[Item]:
    """Reads a data set's images' sizes and captions; decodes no pixels.

    Raises:
        DatasetError: for a missing or empty folder, and for images that cannot be opened or have no caption where no
            default caption is set; one message names them all.
    """
    folder = folder_of(dataset)
    items, broken, silent = [], [], []
    for path in image_files(folder):
        key = path.relative_to(folder).as_posix()
        try:
            width, height = _size(path)
        except UNREADABLE as error:
            broken.append(f"{key} ({error})")
            continue
        caption = read_caption(path, dataset.caption_extension)
        if caption is None:
            caption = dataset.default_caption
        if caption is None:
            silent.append(key)
        items.append(Item(path, key, width, height, caption or ""))
    if broken:
        raise DatasetError(f"{folder}: {_some(broken)} cannot be read as an image. Replace or remove it")
    if silent:
        raise DatasetError(
            f"{folder}: {_some(silent)} has no caption. Write one into a `.{dataset.caption_extension}` file of the "
            "same name beside it, or set `default_caption`"
        )
    return items


def read_caption(image: Path, extension: str) -> str | None:
    """The caption beside an image, verbatim but for white space around it; None if the file is missing or empty.

    Raises:
        DatasetError: if the file is not UTF-8 text.
    """
    path = image.with_suffix("." + extension.lstrip("."))
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8 text. Save it as UTF-8") from None
    except OSError as error:
        raise DatasetError(f"{path}: the caption cannot be read ({error.strerror or error})") from None


def _size(path: Path) -> tuple[int, int]:
    """Width and height as they are seen, EXIF rotation applied."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112) in {5, 6, 7, 8}
    return (height, width) if turned else (width, height)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
