"""Clips whose every frame shows its number, in 8 bits of black and white, and the files that tests make of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

EDGE = 64
BEEP = 440
"""Hz"""


def frame(number: int, width: int = EDGE, height: int = EDGE) -> Image.Image:
    """Four by two fields; the first one is the lowest bit. Numbers go to 255."""
    bits = np.array([number >> k & 1 for k in range(8)], np.uint8).reshape(2, 4) * 255
    return Image.fromarray(bits).resize((width, height), Image.Resampling.NEAREST).convert("RGB")


def number_of(image: Image.Image) -> int:
    """The number that a frame shows, also if it is scaled, compressed or a cut of the middle."""
    grey = np.asarray(image.convert("L"), np.float32)
    rows, columns = grey.shape[0] // 2, grey.shape[1] // 4
    middles = grey[rows // 2 :: rows, columns // 2 :: columns][:2, :4]
    return sum(int(bit) << k for k, bit in enumerate((middles > 127).flatten()))


def write_clip(
    path: Path,
    numbers: Iterable[int],
    rate: Fraction | int = 16,
    *,
    codec: str = "libx264",
    pts: Sequence[int] | None = None,
    tick: Fraction | None = None,
    sound: float | None = None,
    sound_codec: str = "aac",
    sound_rate: int = 44100,
    size: tuple[int, int] = (EDGE, EDGE),
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a clip with PyAV.

    Args:
        pts: when each frame is shown, in units of `tick`; else they follow each other at `rate`.
        sound: how loud a beep is, in one channel; None: no sound.
    """
    numbers = list(numbers)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = options or {}
        if tick is not None:
            stream.codec_context.time_base = tick
        audio: Any = container.add_stream(sound_codec, rate=sound_rate, layout="mono") if sound is not None else None
        for k, number in enumerate(numbers):
            picture = av.VideoFrame.from_image(frame(number, *size))
            picture.pts = k if pts is None else pts[k]
            picture.time_base = tick or 1 / Fraction(rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if audio is not None:
            seconds = len(numbers) / Fraction(rate) if pts is None else pts[-1] * (tick or Fraction(1))
            times = np.arange(round(seconds * sound_rate)) / sound_rate
            wave = (sound * np.sin(2 * math.pi * BEEP * times)).astype(np.float32)[None]
            for start in range(0, wave.shape[1], 1024):
                part = av.AudioFrame.from_ndarray(wave[:, start : start + 1024], format="fltp", layout="mono")
                part.sample_rate, part.pts, part.time_base = sound_rate, start, Fraction(1, sound_rate)
                container.mux(audio.encode(part))
            container.mux(audio.encode())
    return path


def write_gif(path: Path, numbers: Iterable[int], milliseconds: int | Sequence[int]) -> Path:
    """A GIF or an animated WebP, by the suffix."""
    first, *others = [frame(number) for number in numbers]
    kind = {"lossless": True} if path.suffix == ".webp" else {"disposal": 1}
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, **kind)
    return path


def write_frames(folder: Path, numbers: Iterable[int], start: int = 1) -> Path:
    """A folder of numbered pictures; the numbers have no leading zeros, so that their names sort otherwise."""
    folder.mkdir(parents=True)
    for k, number in enumerate(numbers):
        frame(number).save(folder / f"frame{start + k}.png")
    return folder


def decoded(path: Path) -> list[int]:
    """The numbers of all frames that PyAV decodes."""
    with av.open(str(path)) as container:
        return [number_of(one.to_image()) for one in container.decode(video=0)]
