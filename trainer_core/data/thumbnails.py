"""Small pictures of large ones for pages, kept on the disk until there are too many."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from pathlib import Path

from PIL import Image

from ..errors import DatasetError, SaveError
from ..files import write_atomically
from ..reading import leads_away
from .clips.decode import first_picture, pictures
from .clips.header import clip_header, may_move
from .header import UNREADABLE, opened, upright

_LIMIT = 512_000_000
"""Bytes kept; some 40,000 thumbnails."""
_BETWEEN = 500
"""Thumbnails that are written between two looks at what there is."""
_QUALITY = 80
_FRAMES = 48
"""Of a moving thumbnail, at most."""
_PACE = 1000 / 12
"""Milliseconds of a frame where the clip does not say: a frame folder has no times."""


class Thumbnails:
    """Thumbnails of pictures and clips, as WebP; any thread may ask."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0
        self._lock = threading.Lock()

    def of(self, path: Path, size: int, moving: bool = False) -> tuple[bytes, str]:
        """A file's thumbnail of at most `size` pixels, and a mark that changes when the file does.

        Args:
            moving: of a clip, some of its frames, for clips that browsers do not play.

        Raises:
            DatasetError: if it is not there, or cannot be read as a picture.
        """
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path.name}: cannot be read ({error})") from None
        mark = f"{status.st_mtime_ns:x}-{status.st_size:x}-{size}{'-moving' * moving}"
        key = hashlib.sha256(f"{path}\0{mark}".encode("utf-8", "surrogateescape")).hexdigest()
        kept = self._folder / key[:2] / f"{key}.webp"
        with contextlib.suppress(OSError):
            return kept.read_bytes(), mark
        data = _moving(path, size) if moving else _made(path, size)
        with contextlib.suppress(OSError, SaveError):  # it can be made again
            self._keep(kept, data)
        return data, mark

    def _keep(self, file: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if leads_away(self._folder):
            return
        write_atomically(file, data, durably=False, inside=self._folder)
        with self._lock:
            self._written += 1
            due = self._written % _BETWEEN == 0
        if due:
            self.prune(_LIMIT)

    def prune(self, limit: int) -> None:
        """Deletes the oldest until less than `limit` bytes are kept."""
        found = []
        for file in self._folder.glob("??/*.webp"):
            with contextlib.suppress(OSError):
                status = file.lstat()
                found.append((status.st_mtime, status.st_size, file))
        over = sum(size for _, size, _ in found) - limit
        for _, size, file in sorted(found):
            if over <= 0:
                return
            with contextlib.suppress(OSError):  # a page reads it (Windows)
                file.unlink()
                over -= size


def _made(path: Path, size: int) -> bytes:
    picture = _small_jpeg(path, size) or first_picture(path)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()


def _moving(path: Path, size: int) -> bytes:
    """Frames of a clip, evenly spread, at its own pace."""
    try:
        clip = clip_header(path) if may_move(path) else None
    except UNREADABLE as error:
        raise DatasetError(f"{path.name}: cannot be read as a clip ({error})") from None
    if clip is None:
        return _made(path, size)
    frames = [image for _, image in pictures(path, clip, range(0, len(clip.pts), -(-len(clip.pts) // _FRAMES)))]
    for frame in frames:
        frame.thumbnail((size, size))
    pace = 1000 * clip.seconds / len(frames) if clip.seconds else _PACE
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", quality=60, save_all=True, append_images=frames[1:], duration=round(pace), loop=0)
    return buffer.getvalue()


def _small_jpeg(path: Path, size: int) -> Image.Image | None:
    """A photo decoded at a fraction of its size, which takes a fraction of the time; None if it is none."""
    if path.suffix.lower() not in {".jpg", ".jpeg", ".jfif"}:
        return None
    try:
        with path.open("rb") as file, opened(file) as image:
            if image.format != "JPEG":
                return None
            image.draft("RGB", (2 * size, 2 * size))
            return upright(image).convert("RGB")
    except UNREADABLE as error:
        raise DatasetError(f"{path.name}: cannot be read as an image ({error})") from None
