"""Small pictures for pages, kept on disk under their file's identity."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path

from PIL import Image

from ..errors import DatasetError, SaveError
from ..files import write_atomically
from .clips.decode import first_picture, pictures
from .clips.header import clip_header, may_move
from .header import UNREADABLE, opened, upright

SIZES = (64, 128, 192, 256, 384, 512, 768, 1024, 1536)
"""Edges in pixels: a wish is rounded up to the next, so that there are few of each picture."""
_QUALITY = 80
_FRAMES, _FRAME_MS = 48, 1000 / 12
"""Of a moving thumbnail, at most; and how long a frame is shown where the clip does not say."""


def thumbnail(path: Path, edge: int, cache: Path, moving: bool = False) -> bytes:
    """A picture, or the first frame of a clip, in at most `edge` pixels, as WebP.

    Args:
        moving: all of a clip (few of its frames), for clips that browsers do not play.

    Raises:
        DatasetError: if it cannot be read.
    """
    edge = next((size for size in SIZES if size >= edge), SIZES[-1])
    kept = cache / _name(path, edge, moving)
    with contextlib.suppress(OSError):
        return kept.read_bytes()
    buffer = io.BytesIO()
    if moving:
        _write_moving(path, edge, buffer)
    else:
        _small(path, edge).save(buffer, "WEBP", quality=_QUALITY, method=2)
    with contextlib.suppress(SaveError):
        write_atomically(kept, buffer.getvalue(), durably=False)
    return buffer.getvalue()


def _name(path: Path, edge: int, moving: bool) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{path.name}: cannot be read ({error.strerror or error})") from None
    place = f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}:{edge}:{moving}"
    digest = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digest[:2]}/{digest[2:32]}.webp"


def _small(path: Path, edge: int) -> Image.Image:
    """JPEGs are decoded at the least size that is enough: a tenth of the time."""
    try:
        if not may_move(path):
            with path.open("rb") as file, opened(file) as image:
                if image.format == "JPEG":
                    image.draft("RGB", (edge, edge))
                    shown = upright(image).convert("RGB")
                    shown.thumbnail((edge, edge))
                    return shown
    except UNREADABLE as error:
        raise DatasetError(f"{path.name}: cannot be read as an image ({error})") from None
    shown = first_picture(path)
    shown.thumbnail((edge, edge))
    return shown


def _write_moving(path: Path, edge: int, buffer: io.BytesIO) -> None:
    clip = clip_header(path) if may_move(path) else None
    if clip is None:
        _small(path, edge).save(buffer, "WEBP", quality=_QUALITY)
        return
    step = -(-len(clip.pts) // _FRAMES)
    frames = [image for _, image in pictures(path, clip, range(0, len(clip.pts), step))]
    for frame in frames:
        frame.thumbnail((edge, edge))
    shown = 1000 * clip.seconds / len(frames) if clip.seconds else _FRAME_MS
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=round(shown), loop=0, quality=60)
