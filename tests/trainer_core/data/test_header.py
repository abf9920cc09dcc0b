"""What an image's header says, against the decoded image; and that nothing is decoded for it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from trainer_core.data.header import UNREADABLE, Header, read_header

TURNED = 6


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_turned_image(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (50, 30)).save(path, exif=exif(orientation))
    with Image.open(path) as image:
        seen = ImageOps.exif_transpose(image).size
    assert seen == ((30, 50) if orientation > 4 else (50, 30))
    header = read_header(path)
    assert (header.width, header.height) == seen


def test_exif_behind_a_png_s_pixels_counts(tmp_path: Path) -> None:
    """The standard allows it there, and so do Pillow and `load_image` after decoding."""
    path = tmp_path / "a.png"
    Image.new("RGB", (50, 30)).save(path)
    data = path.read_bytes()
    end = data.rindex(b"IEND") - 4
    path.write_bytes(data[:end] + chunk(b"eXIf", exif(TURNED).tobytes()[6:]) + data[end:])
    with Image.open(path) as image:
        assert ImageOps.exif_transpose(image).size == (30, 50)
    assert read_header(path) == Header(30, 50, False)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_no_pixel_is_decoded(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{suffix}"
    told = {"pnginfo": PngImagePlugin.PngInfo()} if suffix == "png" else {}
    if suffix == "png":
        told["pnginfo"].add_text("prompt", "what ComfyUI writes before the pixels")
    Image.new("RGB", (50, 30)).save(path, **told)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert read_header(path) == Header(50, 30, False)


@pytest.mark.parametrize(
    ("mode", "transparent"), [("RGBA", True), ("LA", True), ("P", False), ("L", False), ("RGB", False), ("I;16", False)]
)
def test_transparency(mode: str, transparent: bool, tmp_path: Path) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png") == Header(8, 8, transparent)


def test_a_palette_with_a_transparent_colour_is_transparent(tmp_path: Path) -> None:
    Image.new("P", (8, 8)).save(tmp_path / "a.png", transparency=0)
    assert read_header(tmp_path / "a.png").transparent


@pytest.mark.parametrize("content", [b"", b"x", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"BM"])
def test_what_is_no_image_is_told_in_the_ways_that_are_caught(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UNREADABLE):
        read_header(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_files_cut_anywhere_raise_nothing_else(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (50, 30)).save(path, exif=exif(TURNED)) if suffix != "bmp" else Image.new("RGB", (50, 30)).save(
        path
    )
    data = path.read_bytes()
    for end in range(0, len(data), 3):
        path.write_bytes(data[:end])
        try:
            read_header(path)
        except UNREADABLE:
            continue
