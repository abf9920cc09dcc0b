"""Image file → the pixels that the VAE sees."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import DatasetError
from ..reading import read_regular
from .buckets import Size, cover_box
from .header import MAX_PIXELS, UNREADABLE, opened, upright
from .variants import Box

if TYPE_CHECKING:
    from torch import Tensor

_MAX_BYTES = 8 * MAX_PIXELS
"""Of an image file: the most that the largest image has uncompressed, at 16 bits in four channels."""
_MOST_SHOWN = 1 << 22
"""Pixels of a control image of a size of its own; models scale them to 1 megapixel."""
_STRIP_PIXELS = 1 << 20
"""How many pixels of a deep or transparent image are converted at a time."""


def load_image(path: Path, background: str = "white") -> Image.Image:
    """An image as it is seen: EXIF rotation applied, transparency over a colour (a name or `#rrggbb`), RGB.

    Raises:
        DatasetError: if it is missing, corrupt, truncated or far too large.
    """
    return decode_image(read_image(path), path, background)


def read_image(path: Path) -> bytes:
    """An image file's bytes.

    Raises:
        DatasetError: if it cannot be read.
    """
    with _blaming(path):
        return read_regular(path, _MAX_BYTES)


def decode_image(data: bytes, path: Path, background: str = "white") -> Image.Image:
    """`load_image` for a file whose bytes are at hand; `path` is what an error names."""
    with _seen(data, path) as image:
        if not image.has_transparency_data and not _is_deep(image):
            return image.convert("RGB")
        divisor = _divisor(image)
        seen = Image.new("RGB", image.size)
        for strip in _strips(image):
            part = image.crop(strip)
            colours = _from_high_depth(part, divisor) if _is_deep(part) else part
            if image.has_transparency_data:
                layered = colours.convert("RGBA")
                layered.putalpha(_opacity(part))
                colours = Image.alpha_composite(Image.new("RGBA", part.size, background), layered)
            seen.paste(colours.convert("RGB"), strip[:2])
        return seen


def decode_alpha(data: bytes, path: Path) -> Image.Image:
    """How opaque an image is, as a grey one as it is seen: white is opaque, and so is all of an image without alpha.

    Raises:
        DatasetError: as `load_image` does.
    """
    with _seen(data, path) as image:
        image.load()  # a file that is cut off must be told, whatever is read of it
        opacity = Image.new("L", image.size, 255)
        if image.has_transparency_data:
            for strip in _strips(image):
                opacity.paste(_opacity(image.crop(strip)), strip[:2])
        return opacity


def to_bucket(
    image: Image.Image, size: Size, box: Box | None = None, flip_x: bool = False, flip_y: bool = False
) -> Tensor:
    """A part of an image (the centre if no box says which), scaled to fill a bucket: (3, H, W) in [-1, 1].

    Flips turn what the box shows, so the same part is seen.
    """
    import numpy as np
    import torch

    fitted = image.resize(size, Image.Resampling.LANCZOS, box=box or cover_box(image.width, image.height, size))
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1
    return flipped(pixels, flip_x, flip_y)


def at_own_size(image: Image.Image, box: Box | None = None, flip_x: bool = False, flip_y: bool = False) -> Tensor:
    """A part of an image (all of it if no box says which), scaled down if it is very large: (3, H, W) in [-1, 1]."""
    left, top, right, bottom = box = box or (0, 0, *image.size)
    shrink = min(1.0, (_MOST_SHOWN / ((right - left) * (bottom - top))) ** 0.5)
    width, height = (max(1, round(edge * shrink)) for edge in (right - left, bottom - top))
    return to_bucket(image, (width, height), box, flip_x, flip_y)


def flipped(grid: Tensor, flip_x: bool, flip_y: bool) -> Tensor:
    """(…, H, W) mirrored left to right, upside down, both or neither."""
    return grid.flip([axis for axis, flip in ((-1, flip_x), (-2, flip_y)) if flip])


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] → an RGB image."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def png_bytes(image: Image.Image, facts: Mapping[str, str] | None = None) -> bytes:
    """An image as a PNG file, with facts about it as text chunks that other programs show."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for name, text in (facts or {}).items():
        chunks.add_itxt(name, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


@contextmanager
def _seen(data: bytes, path: Path) -> Iterator[Image.Image]:
    """An image in its own mode, EXIF rotation applied; whatever goes wrong with it is a DatasetError."""
    with _blaming(path), opened(io.BytesIO(data)) as image:
        yield upright(image)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise DatasetError(f"{path}: cannot be read as an image ({error}). Replace or remove it") from None


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _opacity(image: Image.Image) -> Image.Image:
    """The alpha of an image that has a channel or a colour for it; Pillow compares deep values after clipping them."""
    import numpy as np

    if _is_deep(image):
        opaque = np.asarray(image) != image.info["transparency"]
        return Image.fromarray(opaque.astype(np.uint8) * 255)
    return image.convert("RGBA").getchannel("A")


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """An image's rows, some at a time, as boxes: what is made of each on the way takes little memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(image.height, top + rows)


def _divisor(image: Image.Image) -> float:
    """What brings a deep image's values to 0 to 255: Pillow also gives 16-bit ones as 32-bit integers."""
    if image.mode.startswith("I;16"):
        return 257.0
    extrema: tuple[float, float] = image.getextrema() if _is_deep(image) else (0, 0)  # type: ignore[assignment]
    return 257.0 if extrema[1] > 255 else 1.0


def _from_high_depth(part: Image.Image, divisor: float) -> Image.Image:
    """Deep grey to 8-bit RGB; Pillow's own conversion would clip everything over 255 to white."""
    import numpy as np

    values = np.asarray(part, dtype=np.float64) / divisor
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
