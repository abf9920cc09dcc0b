"""An image file's header: what can be known of a picture without decoding it."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, features

from ..content import read_once

UNREADABLE = (
    *(OSError, ValueError, SyntaxError, Image.DecompressionBombError),  # what Pillow means to raise
    *(
        RuntimeError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        EOFError,
    ),  # what slips out of its decoders
    *(struct.error, zlib.error, MemoryError),
)
"""What Pillow raises for files that are no images, or are broken, or are bombs."""
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp"}
    | ({".avif"} if "avif" in features.modules and features.check("avif") else set())
)
"""Of files that count as images, in lower case."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", *(["AVIF"] if ".avif" in IMAGE_SUFFIXES else []))
"""What their content may be, whatever the suffix says. Pillow knows sixty more formats, some of which start other
programs (EPS: Ghostscript) or are hardly ever looked after."""
MAX_PIXELS = 178_956_970
"""Larger images are refused, as Pillow does by default: they are decompression bombs or mistakes."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows an image upright, by its EXIF orientation."""
SIDEWAYS = {5, 6, 7, 8}
"""Orientations whose turn swaps width and height."""

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


def opened(file: str | Path | BinaryIO) -> Image.Image:
    """An image of a format that we train on, not yet decoded; the caller closes it.

    Raises:
        UNREADABLE: if it is none, or a bomb.
    """
    image = Image.open(file, formats=IMAGE_FORMATS)
    if image.width * image.height > MAX_PIXELS:  # the host may have switched Pillow's own limit off
        image.close()
        raise Image.DecompressionBombError(f"it has {image.width}x{image.height} pixels, too many")
    return image


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 is upright, and what stands for nonsense."""
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and found in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """An image as it is seen.

    Pillow's `exif_transpose` also writes the EXIF anew, which fails for what odd cameras and attackers put there.
    """
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


@read_once
def read_header(path: Path) -> Header:
    """Opens an image without decoding its pixels; broken pixels are not noticed.

    Raises:
        UNREADABLE: if it is no image.
    """
    with path.open("rb") as file, opened(file) as image:
        width, height = image.size
        transparent = image.has_transparency_data
        if image.format == "PNG" and not _tells_more_after_pixels(file):
            # Pillow's own getexif() of a PNG decodes all of it, in case metadata follow the pixels
            exif = Image.Image.getexif(image)
        else:
            exif = image.getexif()
        turned = exif.get(_ORIENTATION) in tuple(SIDEWAYS)  # a tuple: what stands there may not be hashable
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
