"""Files and pictures as answers. The server's own way of sending files is not used: beside `a.png` it looks for
`a.png.gz`, and sends that, wherever it leads.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from aiohttp import web

_BLOCK = 1 << 20
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""A pipe in the place of a file would be waited for."""
_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
"""What a page may show; anything else is only saved."""


@dataclass(frozen=True)
class File:
    """A file that was found in a listing of ours."""

    path: Path
    download: str | None = None
    """The name that it is saved under; None shows it in the page."""


@dataclass(frozen=True)
class Picture:
    """A picture that was made here, such as a thumbnail."""

    data: bytes
    mark: str
    """Changes when the picture does."""
    media_type: str = "image/webp"


async def send(request: web.Request, found: File | Picture, headers: Mapping[str, str]) -> web.StreamResponse:
    """Sends it, or that the browser has it already. An address with `t` in its query never shows anything else."""
    lasting = "private, max-age=31536000, immutable" if "t" in request.query else "private, no-cache"
    plain, headers = dict(headers), {**headers, "Cache-Control": lasting}
    if isinstance(found, Picture):
        headers["ETag"] = f'"{found.mark}"'
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=found.data, content_type=found.media_type, headers=headers)
    try:
        file, size, mark = await asyncio.to_thread(_opened, found.path)
    except OSError:
        return web.json_response({"error": "this file is not there (any more)"}, status=404, headers=plain)
    with file:
        headers["ETag"] = f'"{mark}"'
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        if found.download is not None:
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(found.download, safe='')}"
        part = _part(request, size)
        if part:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        sent = part or range(size)
        response = web.StreamResponse(status=206 if part else 200, headers=headers)
        shown = _TYPES.get(found.path.suffix.lower()) if found.download is None else None
        response.content_type = shown or "application/octet-stream"
        left = response.content_length = len(sent)
        await response.prepare(request)
        file.seek(sent.start)
        if request.method == "HEAD":
            left = 0
        while left > 0 and (block := await asyncio.to_thread(file.read, min(left, _BLOCK))):
            left -= len(block)  # what is written to the file meanwhile was not promised
            await response.write(block)
        await response.write_eof()
    return response


def _part(request: web.Request, size: int) -> range | None:
    """The bytes that a player of videos asks for; None if all, or none that there are."""
    with suppress(ValueError):
        if "Range" in request.headers:
            return range(*request.http_range.indices(size)[:2]) or None
    return None


def _opened(path: Path) -> tuple[BinaryIO, int, str]:
    """A regular file, its size, and a mark that changes when it does.

    Raises:
        OSError: if it is not there, a link or anything else.
    """
    if path.is_symlink():  # where the system cannot refuse links by itself
        raise OSError(f"{path}: is a link")
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_LINKS))  # noqa: SIM115
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError(f"{path}: is no regular file")
    return file, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}"
