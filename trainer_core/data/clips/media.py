"""Which of a folder's files and sub-folders are clips, and what their content is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...content import sha256_once
from ..header import UNREADABLE
from .header import MEDIA_SUFFIXES, are_numbered, clip_header, frame_files

if TYPE_CHECKING:
    from ..walk import Found


def with_clips(found: Found, folder: Path, is_frames: Callable[[str, list[str]], bool], sure: bool) -> Found:
    """What was found in a folder, with its clips among the images: files, and sub-folders whose pictures are frames.

    Args:
        is_frames: whether a sub-folder of numbered pictures (its key, which ends in `/`, and theirs) is a clip.
        sure: that clips are trained on; else a GIF that cannot be read is not taken for one.
    """
    gifs = [key for key in found.pictures if key.lower().endswith(".gif")]
    gifs = [key for key in gifs if sure or _is_clip(folder / key)]
    inside: dict[str, list[str]] = {}
    for key in found.images:
        inside.setdefault(key.rpartition("/")[0], []).append(key)
    frames = {
        f"{name}/": keys
        for name, keys in inside.items()
        if name
        and Path(name).suffix.lower() not in MEDIA_SUFFIXES
        and are_numbered([found.images[key] for key in keys])
        and is_frames(f"{name}/", keys)
    }
    single = {key for keys in frames.values() for key in keys}
    images = {key: path for key, path in found.images.items() if key not in single}
    images |= found.clips | {key: folder / key for key in (*gifs, *frames)}
    others = [key for key in found.pictures if key not in gifs]
    return replace(found, images=dict(sorted(images.items())), clips={}, pictures=others)


def content_of(path: Path) -> str:
    """Digest of a file's bytes, or of those of a frame folder's pictures in their order.

    Raises:
        OSError: as the system says.
    """
    if not path.is_dir():
        return sha256_once(path)
    return hashlib.sha256("\n".join(sha256_once(file) for file in frame_files(path)).encode()).hexdigest()


def _is_clip(path: Path) -> bool:
    try:
        return clip_header(path) is not None
    except UNREADABLE:
        return False
