"""The index of a data set: one look at its folders, of which summary, lint and training's scan are views.

A look lists each folder once. What the files hold (headers, captions, metadata, digests) is read when it is asked for,
and read again only if the file has changed since (`content.read_once`): so an index is never kept, and is never stale.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DatasetError
from ..reading import is_folder
from .clips.header import CLIP_SUFFIXES
from .clips.media import with_clips
from .clips.timing import Timing
from .folder import caption_file, expanded, folders_beside, is_there, kohya_folder, read_captions
from .header import IMAGE_SUFFIXES
from .metadata import Metadata, read_metadata
from .text import composed, some
from .walk import Found, real, walk


@dataclass(frozen=True)
class Counterparts:
    """The images and clips of a mask or control folder."""

    folder: Path
    files: dict[str, Path]
    """By the stem that each shares with the data set's image (`_stem`)."""


@dataclass(frozen=True)
class Index:
    """The files of a data set. Images go by their key: the path relative to the folder, with `/`.

    Clips are among the images where they are trained on; the key of a frame folder ends in `/`.
    """

    dataset: DatasetConfig
    path: Path
    found: Found
    """Everything that lies there, and what of it is left out."""
    images: dict[str, Path]
    """By key, sorted by it."""
    metadata: Metadata
    masks: Counterparts | None
    controls: tuple[Counterparts, ...]
    problems: tuple[str, ...]
    """What keeps the set from being trained on; what has a problem is missing here."""

    def captions(self, key: str) -> tuple[tuple[str, ...], bool]:
        """An image's captions as they were written, and whether they are its own.

        Its own are those of its caption file, or else of the metadata. An image that has none takes the name of its
        kohya folder, or the default caption, if there is either.

        Raises:
            DatasetError: if the caption file is not UTF-8 text.
        """
        of_table = self.metadata.captions.get(composed(key.rstrip("/")))
        if own := read_captions(self.images[key], self.dataset) or of_table:
            return own, True
        fallback = (kohya_folder(key)[1] if self.dataset.kohya_folders else None) or self.dataset.default_caption
        return ((fallback,) if fallback else ()), False

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
            key for key in self.metadata.files if composed(key) not in there and not is_there(self.path / key)
        )


def index(dataset: DatasetConfig, timing: Timing | None = None) -> Index:
    """Looks for a data set's files; without a timing for its pictures alone.

    Problems are a folder without images, metadata files that cannot be read, a mask or control folder that is missing,
    and two masks or control images for one image.

    Raises:
        DatasetError: for a folder that is missing or cannot be read.
    """
    folder = expanded(dataset.folder)
    found = walk(folder, folders_beside(dataset))
    metadata = read_metadata(folder, found.tables, dataset.caption_column)
    if timing:
        found = _with_clips(dataset, folder, found, metadata, timing)
    images = {key: path for key, path in found.images.items() if not dataset.kohya_folders or kohya_folder(key)[0]}
    problems, masks, controls = list(metadata.problems), None, tuple[Counterparts, ...]()
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES | (CLIP_SUFFIXES | {".gif"} if timing else set())))
        there = "".join(f"; there are {some(keys)}: {what}" for _, keys, what in found.left_out())
        problems.insert(0, f"{folder}: holds no images ({kinds}). Put the training images there{there}")
    if not problems:
        try:
            stems = {_stem(key) for key in images} if timing else None
            masks = _counterparts("mask_folder", dataset.mask_folder, folder, stems) if dataset.mask_folder else None
            controls = tuple(_counterparts("control_folders", name, folder, stems) for name in dataset.control_folders)
        except DatasetError as error:
            problems.append(str(error))
    return Index(dataset, folder, found, images, metadata, masks, controls, tuple(problems))


def _with_clips(dataset: DatasetConfig, folder: Path, found: Found, metadata: Metadata, timing: Timing) -> Found:
    """Clips are files of their kinds, and sub-folders whose pictures are numbered and have no captions of their own.

    While it is not known what is trained, such a folder must have a caption beside it.
    """

    def captioned(key: str, path: Path) -> bool:
        return composed(key.rstrip("/")) in metadata.captions or is_there(caption_file(path, dataset))

    def is_frames(key: str, pictures: list[str]) -> bool:
        if dataset.kohya_folders and kohya_folder(f"{key}_")[1] and key.count("/") == 1:
            return False  # a folder of kohya's repeats what is in it
        if any(captioned(one, found.images[one]) for one in pictures):
            return False
        return timing.rate is not None or captioned(key, folder / key)

    return with_clips(found, folder, is_frames, sure=timing.rate is not None)


def _counterparts(setting: str, name: str, targets: Path, stems: Collection[str] | None) -> Counterparts:
    """`stems` are those of the data set's images where clips count: sub-folders of these names are clips."""
    folder = expanded(name)
    if is_folder(folder) and real(folder) == real(targets):
        raise DatasetError(f"{setting}: {folder} is the data set's own folder. Give the images' counterparts their own")
    try:
        found = walk(folder)
        if stems is not None:
            found = with_clips(found, folder, lambda key, _: _stem(key) in stems, sure=True)
    except DatasetError as error:
        raise DatasetError(f"{setting}: {error}") from None
    files: dict[str, Path] = {}
    for key, path in found.images.items():
        if _stem(key) in files:
            other = files[_stem(key)].name
            raise DatasetError(f"{setting}: {path} and {other} would both belong to one image. Remove one of them")
        files[_stem(key)] = path
    return Counterparts(folder, files)


def _stem(key: str) -> str:
    """A key without its suffix, by which an image and its counterparts find each other."""
    return composed(key[:-1] if key.endswith("/") else key[: key.rindex(".")])
