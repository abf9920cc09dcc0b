"""Drawn pixels as pictures: one, or the frames of a video, which is kept as an animated WebP beside its first frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..data.clips.decode import pictures
from ..data.clips.header import clip_header
from ..data.clips.timing import resampled
from ..data.images import to_image

if TYPE_CHECKING:
    from torch import Tensor

RATE = "frame_rate"
"""What the first frame's file says of the video beside it."""
_QUALITY = 90


def frames_of(pixels: Tensor) -> list[Image.Image]:
    """Pixels (3, H, W) or (3, T, H, W) in [-1, 1] → RGB images, one or T."""
    return [to_image(one) for one in (pixels.movedim(1, 0) if pixels.dim() == 4 else pixels[None])]


def webp_bytes(frames: Sequence[Image.Image], rate: float) -> bytes:
    """An animated WebP that shows frames at a rate, for ever; browsers play it, and ComfyUI shows it."""
    ends = [round(1000 * (k + 1) / rate) for k in range(len(frames))]
    shown = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="WEBP", save_all=True, append_images=frames[1:], duration=shown, loop=0, quality=_QUALITY
    )
    return buffer.getvalue()


def video_frames(picture: Path) -> tuple[list[Image.Image], float] | None:
    """The frames of the preview whose first one is a picture, and their rate; None if it does not move.

    Equal frames one after another are a single longer one in the file; here they are several again.

    Raises:
        DatasetError: if the video is damaged.
    """
    path = picture.with_suffix(".webp")
    with Image.open(picture) as image:
        rate = image.info.get(RATE)
    clip = clip_header(path) if rate and path.is_file() else None
    if clip is None:
        return None
    numbers = resampled(clip, Fraction(rate))
    found = dict(pictures(path, clip, numbers))
    return [found[number] for number in numbers], float(rate)
