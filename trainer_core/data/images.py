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
        colours = _from_high_depth(image) if _is_deep(image) else image
        if not image.has_transparency_data:
            return colours.convert("RGB")
        layered = colours.convert("RGBA")
        layered.putalpha(_opacity(image))
        return Image.alpha_composite(Image.new("RGBA", layered.size, background), layered).convert("RGB")


def decode_alpha(data: bytes, path: Path) -> Image.Image:
    """How opaque an image is, as a grey one as it is seen: white is opaque, and so is all of an image without alpha.

    Raises:
        DatasetError: as `load_image` does.
    """
    with _seen(data, path) as image:
        if image.has_transparency_data:
            return _opacity(image)
        image.load()  # a file that is cut off must be told, whatever is read of it
        return Image.new("L", image.size, 255)


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


def _from_high_depth(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit RGB; Pillow's own conversion would clip everything over 255 to white."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16") or values.max() > 255:
        values = values / 257.0
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
