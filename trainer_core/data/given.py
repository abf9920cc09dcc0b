"""Images that a host hands over one by one, kept as a data set's folder, so that a run can be resumed without them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import DatasetError
from ..files import write_atomically
from .images import png_bytes

_MASKS = "masks"


def keep_images(
    root: Path, images: Sequence[Image.Image], captions: Sequence[str], masks: Sequence[Image.Image]
) -> tuple[Path, Path | None]:
    """Writes images, captions and masks into a folder below `root` that is named after their content.

    Returns:
        The folder, and the one of the masks, if there are any.

    Raises:
        DatasetError: if captions or masks do not fit the images.
        SaveError: if the folder cannot be written.
    """
    texts = _for_each(captions, len(images), "captions")
    shapes = _for_each(masks, len(images), "masks")
    for k, (image, mask) in enumerate(zip(images, shapes, strict=False)):
        if image.size != mask.size:
            raise DatasetError(
                f"mask {k + 1} has {mask.width}x{mask.height} pixels, its image {image.width}x"
                f"{image.height}; both must have the same size"
            )
    content = hashlib.sha256()
    for picture in (*images, *shapes):
        content.update(f"{picture.size}{picture.mode}".encode() + picture.tobytes())
    content.update(repr(list(texts)).encode())
    folder = root / content.hexdigest()[:16]
    names = [f"{k:0{len(str(len(images)))}}" for k in range(len(images))]
    for name, picture in zip(names, images, strict=True):
        write_atomically(folder / f"{name}.png", png_bytes(picture))
    for name, text in zip(names, texts, strict=False):
        write_atomically(folder / f"{name}.txt", text.encode())
    for name, mask in zip(names, shapes, strict=False):
        write_atomically(folder / _MASKS / f"{name}.png", png_bytes(mask))
    return folder, folder / _MASKS if shapes else None


def _for_each(given: Sequence, count: int, what: str) -> Sequence:
    """One for each image, or none."""
    if len(given) not in (0, 1, count):
        raise DatasetError(f"{len(given)} {what} are given for {count} images; give one for each, or one for all")
    return list(given) * count if len(given) == 1 else given
