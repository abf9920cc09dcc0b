"""An image file's header: what can be known of a picture without decoding it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, features

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are no images, or are broken, or are bombs."""
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
    | ({".avif"} if "avif" in features.modules and features.check("avif") else set())
)
"""Of files that count as images, in lower case."""

_ORIENTATION = 0x0112
_PNG_START = 8
"""Length of a PNG's signature; chunks follow."""


@dataclass(frozen=True)
class Header:
    """What the header says."""

    width: int
    """In pixels as seen, EXIF rotation applied."""
    height: int
    transparent: bool
    """Whether there is an alpha channel or a transparent colour."""


def read_header(path: Path) -> Header:
    """Opens an image without decoding its pixels; broken pixels are not noticed.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: if it is no image (`UNREADABLE`).
    """
    with path.open("rb") as file, Image.open(file) as image:
        width, height = image.size
        transparent = image.has_transparency_data
        if image.format == "PNG" and not _tells_more_after_pixels(file):
            # Pillow's own getexif() of a PNG decodes all of it, in case metadata follow the pixels
            exif = Image.Image.getexif(image)
        else:
            exif = image.getexif()
        turned = exif.get(_ORIENTATION) in {5, 6, 7, 8}
    return Header(height, width, transparent) if turned else Header(width, height, transparent)


def _tells_more_after_pixels(file: BinaryIO) -> bool:
    """Whether a PNG has EXIF or text chunks, which may hold EXIF, behind its first pixels."""
    file.seek(_PNG_START)
    pixels = False
    while len(head := file.read(8)) == 8:
        kind = head[4:]
        if pixels and kind in {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}:
            return True
        pixels = pixels or kind == b"IDAT"
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # and the checksum
    return False
