"""What a clip's file says without being decoded: its size, the times of its frames, and whether there is sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...content import read_once
from ...reading import check_regular
from ..header import IMAGE_SUFFIXES, MAX_PIXELS, Header, read_header

if TYPE_CHECKING:
    from av.container import InputContainer

CLIP_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv"})
"""Of files that are clips whatever they hold, in lower case."""
MOVING_PICTURES = frozenset({".gif", ".webp"})
"""Of files that Pillow reads and that may move."""
MOVING_FORMATS = ("GIF", "WEBP")
"""What their content may be, whatever the suffix says."""
MEDIA_SUFFIXES = IMAGE_SUFFIXES | CLIP_SUFFIXES | MOVING_PICTURES
"""Of all files that may be trained on."""
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
"""What a clip's content may be, whatever its suffix says. FFmpeg knows hundreds of formats more; some of them open
other files, or addresses in the net."""
_SHORTEST_MS = 10
"""Pictures of a GIF that are to be shown no longer than this are shown for 100 ms by every browser."""
_CUT_OFF = 0.5
"""Seconds that may lack at a file's end before it counts as cut off; in some formats the last frame has no length."""
_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
"""By quarter turns to the left."""
_NUMBERED = re.compile(r"(.*?)(\d+)")


class BrokenClipError(ValueError):
    """A file that is no clip, or a damaged one."""


@dataclass(frozen=True)
class ClipHeader(Header):
    """What is known of a clip before it is decoded; sizes are as seen, rotation and shape of pixels applied."""

    pts: tuple[int, ...]
    """When each frame is shown, in ticks, ascending."""
    end: int
    """When the last one has been shown."""
    tick: Fraction | None
    """In seconds. None for a frame folder, which has no times: a picture is a frame at whatever rate is asked for."""
    sound: bool = False

    @property
    def seconds(self) -> float | None:
        """How long it is; None for a frame folder."""
        return None if self.tick is None else float((self.end - self.pts[0]) * self.tick)

    @property
    def rate(self) -> float | None:
        """Frames per second, on average; None for a frame folder."""
        return len(self.pts) / self.seconds if self.seconds else None


def clip_header(path: Path) -> ClipHeader | None:
    """The header of a clip's file or frame folder; None for a picture that does not move.

    Raises:
        BrokenClipError, or what `UNREADABLE` holds: if it is a clip and cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in CLIP_SUFFIXES:
        return _read_container(path)
    if suffix in MOVING_PICTURES:
        return _read_pictures(path)
    return _read_folder(path) if may_move(path) else None


def may_move(path: Path) -> bool:
    """Whether a file (or a frame folder) is a clip, or could be one, by its name."""
    return path.suffix.lower() not in IMAGE_SUFFIXES - MOVING_PICTURES


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a frame folder by their numbers."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    return sorted(found, key=lambda path: (_number(path.stem), path.name))


def are_numbered(paths: list[Path]) -> bool:
    """Whether pictures are frames by their names: two or more, of one kind, named alike but for a number at the end."""
    parts = [_NUMBERED.fullmatch(path.stem) for path in paths]
    names = {(part[1], path.suffix.lower()) for part, path in zip(parts, paths, strict=True) if part}
    return len(paths) > 1 and all(parts) and len(names) == 1


@contextmanager
def opened_clip(path: Path) -> Iterator[tuple[InputContainer, Any]]:
    """A video file and its video stream.

    Raises:
        BrokenClipError: for whatever goes wrong inside as well.
    """
    import av

    check_regular(path)
    try:
        with path.open("rb") as file, av.open(file, options={"format_whitelist": _CONTAINERS}) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise BrokenClipError("it holds no pictures")
            yield container, stream
    except (av.FFmpegError, OSError) as error:  # PyAV hands on what seeking in a short file raises
        raise BrokenClipError(error.strerror or str(error)) from None


def as_seen(frame: Any, stream: Any) -> Image.Image:
    """A decoded frame as a player shows it: in square pixels, and upright."""
    image: Image.Image = frame.to_image()
    shape = stream.sample_aspect_ratio
    if shape and shape != 1:
        image = image.resize((max(1, round(image.width * shape)), image.height), Image.Resampling.LANCZOS)
    turns = round(frame.rotation / 90) % 4
    return image.transpose(_TURNS[turns]) if turns else image


@read_once
def _read_container(path: Path) -> ClipHeader:
    with opened_clip(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise BrokenClipError("none of its frames can be decoded")
        first = as_seen(frame, stream)
    with opened_clip(path) as (container, stream):
        pts: set[int] = set()
        end, last = 0, Fraction(0)
        for packet in container.demux():
            if not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise BrokenClipError("it is damaged, or cut off")
            begins, lasts = packet.pts, packet.duration or 0
            if begins is not None:
                last = max(last, (begins + lasts) * packet.time_base)
            if packet.stream is stream and _is_shown(packet):
                if begins is None:
                    raise BrokenClipError("its frames have no times")
                pts.add(begins)
                end = max(end, begins + lasts)
        if not pts:
            raise BrokenClipError("it holds no pictures")
        ordered = tuple(sorted(pts))
        if end <= ordered[-1]:  # the last packet does not say how long it is shown
            gap = (ordered[-1] - ordered[0]) / (len(ordered) - 1) if len(ordered) > 1 else 1
            end = ordered[-1] + max(1, round(gap))
        longest = max((later - earlier for earlier, later in pairwise(ordered)), default=0) * stream.time_base
        promised = Fraction((container.duration or 0) + (container.start_time or 0), 1_000_000)
        if promised - last > max(_CUT_OFF, 2 * longest):
            told = f"it should last {float(promised):.1f} s, and ends at {float(last):.1f}"
            raise BrokenClipError(f"it is cut off: {told}")
        sound = bool(container.streams.audio)
        return ClipHeader(first.width, first.height, False, ordered, end, stream.time_base, sound)


def _is_shown(packet: Any) -> bool:
    """Whether a packet is a frame of its own: VP8 has some that others are only made from (RFC 6386, 9.1)."""
    return packet.stream.codec_context.name not in {"vp8", "libvpx"} or bool(bytes(packet)[0] >> 4 & 1)


@read_once
def _read_pictures(path: Path) -> ClipHeader | None:
    """A GIF or WebP; one that is a single picture is a clip only if nothing else reads it."""
    check_regular(path)
    single = path.suffix.lower() in IMAGE_SUFFIXES
    with path.open("rb") as file:
        try:
            image = Image.open(file, formats=MOVING_FORMATS)
        except Image.UnidentifiedImageError:
            if single:  # of another kind than its name says
                return None
            raise
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"it has {image.width}x{image.height} pixels, too many")
        count = getattr(image, "n_frames", 1)
        if count == 1 and single:
            return None
        pts, now, transparent = [], 0, image.has_transparency_data
        for number in range(count):
            image.seek(number)
            image.load()  # WebP: says only then how long it is shown
            shown = round(image.info.get("duration", 0))
            pts.append(now)
            now += shown if shown > _SHORTEST_MS else 100
        return ClipHeader(image.width, image.height, transparent, tuple(pts), now, Fraction(1, 1000))


def _read_folder(path: Path) -> ClipHeader:
    files = frame_files(path)
    if not files:
        raise BrokenClipError("there are no pictures in it")
    headers = [read_header(file) for file in files]
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if (header.width, header.height) != (first.width, first.height):
            sizes = f"{header.width}x{header.height} pixels, and {files[0].name} {first.width}x{first.height}"
            raise BrokenClipError(f"{file.name} has {sizes}")
    transparent = any(header.transparent for header in headers)
    return ClipHeader(first.width, first.height, transparent, tuple(range(len(files))), len(files), None)


def _number(stem: str) -> int:
    match = _NUMBERED.fullmatch(stem)
    return int(match[2]) if match else 0
