"""The pictures and the sound of a clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...errors import DatasetError
from ..header import UNREADABLE
from ..images import decode_alpha, decode_image, load_image, read_image
from .header import MOVING_FORMATS, MOVING_PICTURES, ClipHeader, as_seen, clip_header, frame_files, opened_clip

if TYPE_CHECKING:
    from torch import Tensor

_SEEK_FRAMES = 48
"""Frames that are rather decoded and dropped than skipped."""
_SEEK_SECONDS = 10
_LEAD = 1
"""Seconds of sound that are decoded before those that are wanted: a decoder needs some to get going."""


def pictures(
    path: Path, clip: ClipHeader, numbers: Sequence[int], background: str | None = "white"
) -> Iterator[tuple[int, Image.Image]]:
    """Frames of a clip with their numbers, as they are seen, in RGB; each once, in their order.

    Args:
        background: colour behind what is transparent; None: how opaque they are, in grey, instead.

    Raises:
        DatasetError: if one of them cannot be decoded.
    """
    wanted = sorted(set(numbers))
    try:
        if clip.tick is None:
            files = frame_files(path)
            for number in wanted:
                data, file = read_image(files[number]), files[number]
                yield number, decode_alpha(data, file) if background is None else decode_image(data, file, background)
        elif path.suffix.lower() in MOVING_PICTURES:
            yield from _of_pictures(path, wanted, background)
        else:
            for number, image in _of_container(path, clip, wanted):
                yield number, Image.new("L", image.size, 255) if background is None else image
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def first_picture(path: Path, background: str = "white") -> Image.Image:
    """A picture, or the first frame of a clip, as it is seen, in RGB.

    Raises:
        DatasetError: if it cannot be read.
    """
    try:
        clip = clip_header(path)
    except UNREADABLE as error:
        raise unreadable(path, error) from None
    return load_image(path, background) if clip is None else next(pictures(path, clip, [0], background))[1]


def unreadable(path: Path, error: Exception) -> DatasetError:
    """What a user is told of a clip that cannot be read."""
    return DatasetError(f"{path}: cannot be read as a clip ({error}). Replace or remove it")


def sound(path: Path, clip: ClipHeader, begin: Fraction, samples: int, rate: int) -> Tensor:
    """(2, samples) in [-1, 1], stereo at `rate`, from `begin` (seconds after the first frame) on.

    What is not there is silent: before and after the sound, and all of a clip without any.

    Raises:
        DatasetError: if it cannot be decoded.
    """
    import torch

    found = torch.zeros(2, samples)
    if not clip.sound or clip.tick is None:
        return found
    try:
        for start, part in _of_sound(path, clip.pts[0] * clip.tick + begin, rate):
            low, high = max(0, start), min(samples, start + part.shape[1])
            if low < high:
                found[:, low:high] = part[:, low - start : high - start]
            if start >= samples:
                break
    except UNREADABLE as error:
        raise unreadable(path, error) from None
    return found.clamp(-1, 1)


def _of_container(path: Path, clip: ClipHeader, numbers: list[int]) -> Iterator[tuple[int, Image.Image]]:
    waiting = {clip.pts[number]: number for number in numbers}
    with opened_clip(path) as (container, stream):
        for frame in _from(container, stream, clip.pts[numbers[0]], seek=numbers[0] > _SEEK_FRAMES):
            number = waiting.pop(frame.pts, None)
            if number is not None:
                if frame.is_corrupt:
                    raise ValueError(f"frame {number} is damaged")
                yield number, as_seen(frame, stream)
            if not waiting:
                return
    raise ValueError(f"frame {min(waiting.values())} is damaged, or the file is cut off")


def _from(container: Any, stream: Any, first: int, seek: bool) -> Iterator[Any]:
    """Decoded frames, some before `first` among them; if it was jumped over, all from the file's start."""
    if seek:
        container.seek(first, stream=stream)
        frames = container.decode(stream)
        frame = next(frames, None)
        if frame is not None and frame.pts is not None and frame.pts <= first:
            yield frame
            yield from frames
            return
    if seek:
        container.seek(0)
    yield from container.decode(stream)


def _of_pictures(path: Path, numbers: list[int], background: str | None) -> Iterator[tuple[int, Image.Image]]:
    with path.open("rb") as file, Image.open(file, formats=MOVING_FORMATS) as image:
        for number in numbers:
            image.seek(number)
            layered = image.convert("RGBA")
            if background is None:
                yield number, layered.getchannel("A")
            else:
                ground = Image.new("RGBA", layered.size, background)
                yield number, Image.alpha_composite(ground, layered).convert("RGB")


def _of_sound(path: Path, begin: Fraction, rate: int) -> Iterator[tuple[int, Tensor]]:
    """Pieces of a file's sound, each with the sample at which it starts, counted from `begin`."""
    import av
    import torch

    with opened_clip(path) as (container, _):
        stream = container.streams.best("audio")
        if stream is None:
            return
        if begin > _SEEK_SECONDS and stream.time_base:
            container.seek(int((begin - _LEAD) / stream.time_base), stream=stream)
        resampler, place = av.AudioResampler(format="fltp", layout="stereo", rate=rate), None
        for frame in _and_none(container.decode(stream)):
            if place is None:
                if frame is None:
                    return
                place = round((frame.pts * frame.time_base - begin) * rate)
            for part in resampler.resample(frame):
                yield place, torch.from_numpy(part.to_ndarray())
                place += part.samples


def _and_none(frames: Iterator[Any]) -> Iterator[Any]:
    """Frames, and None behind the last, which makes a resampler give what it holds back."""
    yield from frames
    yield None
