"""What is read of clips, against files whose every frame shows its number and against what PyAV decodes of them."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from trainer_core.data.clips.decode import pictures, sound
from trainer_core.data.clips.header import BrokenClipError, ClipHeader, clip_header
from trainer_core.errors import DatasetError

from ...clips import decoded, frame, number_of, write_clip, write_frames, write_gif

IRREGULAR = [k * k + 20 * k for k in range(20)]
"""Milliseconds: gaps from 21 to 57."""
VP8 = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "300k"}
"""With packets that are never shown."""
B_FRAMES = {"g": "24", "bf": "3"}
FILES: dict[str, tuple[Callable[[Path], Path], int, float]] = {
    "film": (lambda d: write_clip(d / "a.mp4", range(50), Fraction(24000, 1001), options=B_FRAMES), 50, 50 / 23.976),
    "ntsc": (lambda d: write_clip(d / "a.webm", range(50), Fraction(30000, 1001), codec="libvpx-vp9"), 50, 50 / 29.97),
    "hidden": (lambda d: write_clip(d / "a.webm", range(50), 25, codec="libvpx", options=VP8), 50, 2.0),
    "irregular": (lambda d: write_clip(d / "a.mkv", range(20), 30, pts=IRREGULAR, tick=Fraction(1, 1000)), 20, 0.779),
    "old": (lambda d: write_clip(d / "a.mov", range(20), 12, codec="mpeg4"), 20, 20 / 12),
    "long": (lambda d: write_clip(d / "a.m4v", range(200), 30, sound=0.5, options=B_FRAMES), 200, 200 / 30),
    "gif": (lambda d: write_gif(d / "a.gif", range(24), [80, 90] * 12), 24, 24 * 0.085),
    "webp": (lambda d: write_gif(d / "a.webp", range(9), [30 + k for k in range(9)]), 9, 0.306),
}


def header(path: Path) -> ClipHeader:
    found = clip_header(path)
    assert found is not None
    return found


def shown(path: Path, numbers: list[int]) -> list[int]:
    """The numbers in the pictures of these frames."""
    found = {number: number_of(image) for number, image in pictures(path, header(path), numbers)}
    return [found[number] for number in numbers]


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_counted_and_found(name: str, tmp_path: Path) -> None:
    make, count, seconds = FILES[name]
    path = make(tmp_path)
    clip = header(path)
    assert (len(clip.pts), clip.width, clip.height) == (count, 64, 64)
    assert clip.seconds == pytest.approx(seconds, abs=0.04)
    if path.suffix != ".webp":  # which FFmpeg does not read
        assert decoded(path) == [*range(count)]
    assert shown(path, [*range(count)]) == [*range(count)]


@pytest.mark.parametrize("name", ["long", "film", "gif"])
def test_single_frames_are_found_wherever_they_are(name: str, tmp_path: Path) -> None:
    """Beyond a second or two the file is not decoded from its start."""
    make, count, _ = FILES[name]
    path = make(tmp_path)
    for number in range(0, count, 7):
        assert shown(path, [number, count - 1]) == [number, count - 1]


def test_times_are_those_of_the_frames(tmp_path: Path) -> None:
    path = FILES["irregular"][0](tmp_path)
    clip = header(path)
    assert clip.tick is not None
    assert [round(float(pts * clip.tick) * 1000) for pts in clip.pts] == IRREGULAR
    gif = header(FILES["gif"][0](tmp_path))
    assert gif.pts == (0, *accumulate(([80, 90] * 12)[:-1]))
    quick = header(write_gif(tmp_path / "quick.gif", range(4), 10))
    assert (quick.pts, quick.end) == ((0, 100, 200, 300), 400), "as browsers show it"


@pytest.mark.parametrize(
    ("a", "b", "size", "back"),
    [
        (0, 1, (64, 96), Image.Transpose.ROTATE_90),  # a phone's: played turned to the right
        (0, -1, (64, 96), Image.Transpose.ROTATE_270),
        (-1, 0, (96, 64), Image.Transpose.ROTATE_180),
    ],
)
def test_a_turned_clip_is_upright(a: int, b: int, size: tuple[int, int], back: Any, tmp_path: Path) -> None:
    """By hand: a track's header (ISO 14496-12, 8.3.2) holds the matrix a b, -b a by which it is played."""
    path = write_clip(tmp_path / "a.mp4", range(4), 12, size=(96, 64))
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert struct.unpack(">9i", data[place : place + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    clip = header(path)
    assert (clip.width, clip.height) == size
    for number, image in pictures(path, clip, range(4)):
        assert image.size == size
        assert number_of(image.transpose(back)) == number


def test_oblong_pixels_are_shown_as_square_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for number in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(number))))
        container.mux(stream.encode())
    assert (header(path).width, header(path).height) == (96, 64)
    assert [image.size for _, image in pictures(path, header(path), [0, 3])] == [(96, 64)] * 2
    assert shown(path, [0, 3]) == [0, 3]


def test_a_frame_folder_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "walk", range(12))
    assert sorted(path.name for path in folder.iterdir())[1] == "frame10.png"
    assert len(header(folder).pts) == 12
    assert header(folder).seconds is None
    assert shown(folder, [*range(12)]) == [*range(12)]


def test_frames_of_different_sizes_are_no_clip(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "walk", range(3))
    Image.new("RGB", (32, 64)).save(folder / "frame4.png")
    with pytest.raises(BrokenClipError, match=r"frame4\.png has 32x64 pixels, and frame1\.png 64x64"):
        clip_header(folder)


def test_pictures_that_do_not_move_are_no_clips(tmp_path: Path) -> None:
    for name in ("a.png", "a.webp", "a.jpg"):
        frame(1).save(tmp_path / name)
        assert clip_header(tmp_path / name) is None
    frame(1).save(tmp_path / "a.gif")
    assert len(header(tmp_path / "a.gif").pts) == 1


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    """As with pictures. Chat programs call WebPs GIFs, and JPEGs WebPs."""
    frame(1).save(tmp_path / "a.webp", format="JPEG")
    assert clip_header(tmp_path / "a.webp") is None
    write_gif(tmp_path / "b.webp", range(5), 80).rename(tmp_path / "b.gif")
    write_gif(tmp_path / "c.gif", range(5), 80).rename(tmp_path / "c.webp")
    for name in ("b.gif", "c.webp"):
        assert shown(tmp_path / name, [0, 4]) == [0, 4]


def test_a_slow_clip_is_not_cut_off(tmp_path: Path) -> None:
    """Matroska does not say how long the last frame is shown."""
    pts = [0, 2000, 4000, 6000]
    path = write_clip(tmp_path / "a.mkv", range(4), Fraction(1, 2), pts=pts, tick=Fraction(1, 1000))
    assert [float(one * (header(path).tick or 0)) for one in header(path).pts] == [0, 2, 4, 6]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".mov"])
def test_what_is_cut_off_is_told(suffix: str, tmp_path: Path) -> None:
    codec, options = ("libvpx-vp9", {}) if suffix == ".webm" else ("libx264", {"movflags": "faststart", "g": "12"})
    path = write_clip(tmp_path / f"a{suffix}", range(60), 24, codec=codec, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenClipError):
        clip_header(path)


def test_what_is_no_clip_is_told(tmp_path: Path) -> None:
    for name, data in (("a.mp4", b""), ("b.mp4", b"no clip at all" * 99), ("c.webm", b"\x1a\x45\xdf\xa3" + bytes(99))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BrokenClipError):
            clip_header(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "ffconcat version 1.0\nfile other.mp4\n", "http://127.0.0.1:9/a.mp4"],
)
def test_a_list_of_other_files_is_no_clip(text: str, tmp_path: Path) -> None:
    """FFmpeg would open what it names."""
    write_clip(tmp_path / "other.mp4", range(4), 12)
    (tmp_path / "a.mp4").write_text(text, encoding="utf-8")
    with pytest.raises(BrokenClipError):
        clip_header(tmp_path / "a.mp4")


def test_sound_without_pictures_is_no_clip(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        part.sample_rate = 44100
        container.mux(stream.encode(part))
        container.mux(stream.encode())
    with pytest.raises(BrokenClipError, match="no pictures"):
        clip_header(tmp_path / "a.mp4")


def test_a_clip_that_lost_a_frame_since_is_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", range(20), 12)
    clip = header(path)
    shutil.copy(write_clip(tmp_path / "b.mp4", range(9), 12), path)
    with pytest.raises(DatasetError, match=r"a\.mp4: cannot be read as a clip \(frame 9 is damaged"):
        [*pictures(path, clip, range(20))]


# sound


def beep_at(path: Path, begin: Fraction, samples: int, rate: int) -> np.ndarray:
    return sound(path, header(path), begin, samples, rate).numpy()


@pytest.mark.parametrize(("suffix", "codec", "own"), [(".mp4", "aac", 44100), (".webm", "libopus", 48000)])
def test_sound_is_stereo_at_the_rate_of_the_model(suffix: str, codec: str, own: int, tmp_path: Path) -> None:
    video = "libvpx-vp9" if suffix == ".webm" else "libx264"
    path = write_clip(tmp_path / f"a{suffix}", range(36), 12, codec=video, sound=0.5, sound_codec=codec, sound_rate=own)
    found = beep_at(path, Fraction(1), 16000, 16000)
    assert found.shape == (2, 16000)
    assert np.array_equal(found[0], found[1]), "one channel is heard on both sides"
    spectrum = np.abs(np.fft.rfft(found[0]))
    assert spectrum.argmax() == 440, "a beep of 440 Hz, in one second"
    assert 0.3 < np.abs(found).max() < 0.6


def test_sound_that_ends_is_followed_by_silence(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", range(12), 12, sound=0.5)
    found = beep_at(path, Fraction(1, 2), 16000, 16000)
    assert np.abs(found[:, 2000:7000]).max() > 0.3
    assert not found[:, 9600:].any()
    assert not beep_at(path, Fraction(100), 160, 16000).any()


@pytest.mark.parametrize("seconds", [2, 14])
def test_sound_is_where_its_pictures_are(seconds: int, tmp_path: Path) -> None:
    """One click, 0.7 s after that many seconds; far into a file it is not decoded from its start."""
    path, rate, at = tmp_path / "a.mkv", 16000, seconds * 16000 + 11200
    samples = np.zeros((1, (seconds + 2) * rate), np.float32)
    samples[0, at] = 0.9
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for k in range(8 * (seconds + 2)):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(k))))
        container.mux(stream.encode())
        for start in range(0, samples.shape[1], 1000):
            whole = (samples[:, start : start + 1000] * 32767).astype(np.int16)
            part = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
            part.sample_rate, part.pts, part.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(part))
        container.mux(audio.encode())
    found = beep_at(path, Fraction(seconds), rate, rate)
    assert abs(int(np.abs(found[0]).argmax()) - 11200) <= 16, "within the millisecond of Matroska's time stamps"


def test_without_sound_there_is_silence(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", range(12), 12)
    assert not header(path).sound
    assert not beep_at(path, Fraction(0), 800, 1600).any()
    assert not beep_at(write_frames(tmp_path / "walk", range(3)), Fraction(0), 800, 1600).any()
