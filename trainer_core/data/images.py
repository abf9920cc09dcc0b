"""Image file → the pixels that the VAE sees."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import DatasetError
from .buckets import Size, cover_box
from .scan import UNREADABLE

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 178_956_970
"""Larger images are refused, as Pillow does by default: they are decompression bombs or mistakes."""


def load_image(path: Path) -> Image.Image:
    """An image as it is seen: EXIF rotation applied, transparency over white, RGB.

    Raises:
        DatasetError: if it is corrupt, truncated or far too large.
    """
    from PIL import ImageOps

    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise DatasetError(f"{path}: has {opened.width}x{opened.height} pixels, too many. Shrink or remove it")
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                return _from_high_depth(image)
            if image.has_transparency_data:
                layered = image.convert("RGBA")
                paper = Image.new("RGBA", layered.size, (255, 255, 255, 255))
                return Image.alpha_composite(paper, layered).convert("RGB")
            return image.convert("RGB")
    except UNREADABLE as error:
        raise DatasetError(f"{path}: cannot be read as an image ({error}). Replace or remove it") from None


def to_bucket(image: Image.Image, size: Size, flip: bool = False) -> Tensor:
    """The centre of an image, scaled to fill a bucket: (3, H, W) in [-1, 1]."""
    import numpy as np
    import torch

    fitted = image.resize(size, Image.Resampling.LANCZOS, box=cover_box(image.width, image.height, size))
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1
    return pixels.flip(-1) if flip else pixels


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] → an RGB image."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def png_bytes(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _from_high_depth(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit RGB; Pillow's own conversion would clip everything over 255 to white."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16") or values.max() > 255:
        values = values / 257.0
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
