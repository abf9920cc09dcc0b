"""Pixels as they are seen: rotation, transparency, depth; and files that are no good."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from trainer_core.data.images import decode_alpha, load_image, to_bucket, to_image
from trainer_core.errors import DatasetError

CORNERS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)], [(255, 255, 255), (0, 0, 0)]]
"""Three rows of two pixels, all different: any turn or flip shows."""
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF orientation → what a viewer does to the stored pixels (EXIF 2.3, tag 0x0112)."""


def corners() -> np.ndarray:
    return np.array(CORNERS, np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(path: Path, width: int, height: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> None:
    """A PNG written by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_rotation_is_applied(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners()).save(tmp_path / "a.png", exif=exif)
    seen = np.asarray(load_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(seen, TURNS[orientation](corners()))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    pixels = np.array([[(200, 100, 0, 0), (200, 100, 0, 255), (200, 100, 0, 51)]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    # 51 / 255 = 0.2: 0.2 · 200 + 0.8 · 255 = 244, 0.2 · 100 + 0.8 · 255 = 224, 0.8 · 255 = 204
    expected = [[(255, 255, 255), (200, 100, 0), (244, 224, 204)]]
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.png")).astype(int), expected, atol=1)


def test_grey_with_transparency(tmp_path: Path) -> None:
    Image.fromarray(np.array([[(0, 0), (0, 255)]], np.uint8), "LA").save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png")).tolist() == [[[255] * 3, [0] * 3]]


def test_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert np.asarray(load_image(tmp_path / "plain.png")).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert np.asarray(load_image(tmp_path / "clear.png")).tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        ("black", [(0, 0, 0), (200, 100, 0), (40, 20, 0)]),
        ("#ff8000", [(255, 128, 0), (200, 100, 0), (244, 122, 0)]),  # 0.2 · 100 + 0.8 · 128 = 122.4
        ("rgb(0, 0, 255)", [(0, 0, 255), (200, 100, 0), (40, 20, 204)]),
    ],
)
def test_transparency_lies_over_any_colour(
    background: str, expected: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    pixels = np.array([[(200, 100, 0, 0), (200, 100, 0, 255), (200, 100, 0, 51)]], np.uint8)
    for suffix in ("png", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", lossless=True)
        seen = np.asarray(load_image(tmp_path / f"a.{suffix}", background)).astype(int)
        np.testing.assert_allclose(seen, [expected], atol=1)


def test_palette_with_degrees_of_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([51, 255]))
    seen = np.asarray(load_image(tmp_path / "a.png", "black")).astype(int)
    np.testing.assert_allclose(seen, [[(51, 0, 0), (0, 0, 255)]], atol=1)


def test_a_transparent_colour_of_a_picture_without_alpha(tmp_path: Path) -> None:
    Image.fromarray(corners()).save(tmp_path / "a.png", transparency=(255, 0, 0))
    seen = np.asarray(load_image(tmp_path / "a.png", "black"))
    assert seen[0, 0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(seen.reshape(6, 3)[1:], corners().reshape(6, 3)[1:])


def test_a_transparent_value_of_sixteen_bit_grey(tmp_path: Path) -> None:
    clear, rows = struct.pack(">H", 65535), b"\0" + struct.pack(">2H", 257 * 100, 65535)
    png_of(tmp_path / "a.png", 2, 1, depth=16, kind=0, rows=rows, extra=chunk(b"tRNS", clear))
    assert np.asarray(load_image(tmp_path / "a.png", "red")).tolist() == [[[100] * 3, [255, 0, 0]]]


def test_cmyk_as_pillow_converts_it(tmp_path: Path) -> None:
    """Full cyan is no red: 255 - 255 = 0; the others have no ink."""
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.jpg"))[8, 8].astype(int), (0, 255, 255), atol=2)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.avif", quality=100)
    seen = np.asarray(load_image(tmp_path / "a.avif"))[8, 8].astype(int)
    np.testing.assert_allclose(seen, (200, 100, 50), atol=3)


# --- opacity ---------------------------------------------------------------------------------------------------------


def alpha(path: Path) -> list[list[int]]:
    image = decode_alpha(path.read_bytes(), path)
    assert image.mode == "L"
    return np.asarray(image).tolist()


def test_opacity_of_modes_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.array([[(1, 2, 3, 0), (1, 2, 3, 77), (1, 2, 3, 255)]], np.uint8)).save(tmp_path / "rgba.png")
    Image.fromarray(np.array([[(9, 0), (9, 77), (9, 255)]], np.uint8), "LA").save(tmp_path / "la.png")
    assert alpha(tmp_path / "rgba.png") == alpha(tmp_path / "la.png") == [[0, 77, 255]]


def test_opacity_turns_with_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[(0, 0, 0, 10), (0, 0, 0, 200)]], np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert alpha(tmp_path / "a.png") == [[10], [200]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK", "I;16"])
def test_what_has_no_alpha_is_opaque(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image = Image.fromarray(np.zeros((1, 2), np.uint16)) if mode == "I;16" else Image.new(mode, (2, 1))
    image.save(path)
    assert alpha(path) == [[255, 255]]


def test_opacity_of_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    noise_image().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"cut\.png"):
        alpha(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    name = "a.jpg" if mode in {"CMYK", "YCbCr"} else "a.png"
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / name)
    image = load_image(tmp_path / name)
    assert image.mode == "RGB"
    assert np.asarray(image).min() >= 253


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 64, 257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == [[0] * 3, [64] * 3, [128] * 3, [255] * 3]


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path: Path) -> None:
    """200 of 65535 is nearly black; what the file is follows from its mode, not from its largest value."""
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png")).max() <= 1


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    png_of(tmp_path / "a.png", 1, 1, depth=16, kind=2, rows=b"\0" + struct.pack(">3H", 65535, 257 * 100, 0))
    assert np.asarray(load_image(tmp_path / "a.png"))[0, 0].tolist() == [255, 100, 0]


def test_animations_give_their_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(load_image(tmp_path / "a.webp"))[8, 8].tolist() == [255, 0, 0]


# --- files that are no good ------------------------------------------------------------------------------------------


def noise_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 100])
def test_no_image_at_all_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"bad\.png.*(?i:replace or remove)"):
        load_image(tmp_path / "bad.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_truncated_images_are_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise_image().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"cut\.{suffix}"):
        load_image(path)


@pytest.mark.parametrize("pixels", [200_000_000, 400_000_000, 4_000_000_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes_are_refused_before_decoding(pixels: int, tmp_path: Path) -> None:
    png_of(tmp_path / "huge.png", pixels // 1000, 1000, depth=8, kind=0, rows=b"\0")
    with pytest.raises(DatasetError, match=r"huge\.png"):
        load_image(tmp_path / "huge.png")


def attempt(path: Path) -> str:
    """The mode of the image, or what the user is told."""
    try:
        return load_image(path).mode
    except DatasetError as error:
        return str(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", *(["avif"] if features.check("avif") else [])])
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_damaged_nothing_but_a_dataset_error_comes_out(suffix: str, tmp_path: Path) -> None:
    """Bit rot, three hundred times: the picture loads, or the error is one that a user can read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{suffix}"
    noise_image().save(path, **({} if suffix == "bmp" else {"exif": exif}))
    data, rng = path.read_bytes(), random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3, 10))):
            damaged[rng.randrange(min(len(data), rng.choice((60, 200, 10**6))))] = rng.randrange(256)
        path.write_bytes(damaged if rng.random() < 0.7 else damaged[: rng.randrange(len(data))])
        outcome = attempt(path)
        assert outcome == "RGB" or f"a.{suffix}" in outcome


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_pixels_are_channels_rows_columns_in_minus_one_to_one() -> None:
    image = Image.new("RGB", (32, 16), (255, 0, 127))
    image.paste((0, 255, 127), (16, 0, 32, 16))
    pixels = to_bucket(image, (32, 16))
    assert pixels.shape == (3, 16, 32)
    assert pixels.dtype == torch.float32
    assert pixels[:, 8, 2].tolist() == pytest.approx([1, -1, 127 / 127.5 - 1])
    assert pixels[:, 8, 29].tolist() == pytest.approx([-1, 1, 127 / 127.5 - 1])
    assert torch.equal(to_bucket(image, (32, 16), flip_x=True), pixels.flip(2))
    assert torch.equal(to_bucket(image, (32, 16), flip_y=True), pixels.flip(1))
    assert torch.equal(to_bucket(image, (32, 16), flip_x=True, flip_y=True), pixels.flip(1, 2))


def test_the_centre_is_kept() -> None:
    """A wide picture into a square: a quarter goes on the left and a quarter on the right."""
    image = Image.new("RGB", (128, 64), "black")
    image.paste("white", (32, 0, 96, 64))
    assert to_bucket(image, (64, 64)).min() == 1.0
    tall = image.transpose(Image.Transpose.ROTATE_90)
    assert to_bucket(tall, (64, 64)).min() == 1.0


def test_a_box_is_what_is_seen() -> None:
    """A part of an image is that part cut out, where it begins and ends with whole pixels and is not scaled."""
    image = noise_image()
    cut = image.crop((5, 3, 37, 19))
    seen = to_bucket(image, (32, 16), (5, 3, 37, 19))
    assert to_image(seen).tobytes() == cut.tobytes()
    flipped = to_image(to_bucket(image, (32, 16), (5, 3, 37, 19), flip_x=True, flip_y=True))
    assert flipped.tobytes() == cut.transpose(Image.Transpose.ROTATE_180).tobytes()


def test_scaling_is_pillows_lanczos() -> None:
    image = noise_image().resize((128, 96), Image.Resampling.BICUBIC)
    expected = np.asarray(image.resize((64, 48), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1
    np.testing.assert_array_equal(to_bucket(image, (64, 48)).permute(1, 2, 0).numpy(), expected)


def test_to_image_inverts_to_bucket() -> None:
    image = noise_image()
    assert to_image(to_bucket(image, image.size)).tobytes() == image.tobytes()


def test_to_image_clamps() -> None:
    pixels = torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1)
    assert to_image(pixels).getpixel((0, 0)) == (0, 128, 255)
