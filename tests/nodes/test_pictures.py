"""Pictures between files, PIL and ComfyUI's IMAGE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image


@pytest.fixture
def pictures(pack: Callable[[str], ModuleType]) -> ModuleType:
    return pack("nodes.pictures")


def test_to_image_and_back_is_exact(pictures: ModuleType) -> None:
    picture = Image.effect_noise((8, 6), 80).convert("RGB")
    batch = pictures.to_batch([picture, picture])
    assert batch.shape == (2, 6, 8, 3)
    assert batch.dtype == torch.float32
    assert [back.tobytes() for back in pictures.from_batches([batch])] == [picture.tobytes()] * 2


def test_lists_of_batches_and_single_images_are_taken_apart(pictures: ModuleType) -> None:
    found = pictures.from_batches([torch.zeros(2, 4, 4, 3), torch.ones(5, 3, 3), torch.full((1, 2, 2, 4), 0.5)])
    assert [(picture.size, picture.mode) for picture in found] == [
        ((4, 4), "RGB"),
        ((4, 4), "RGB"),
        ((3, 5), "RGB"),
        ((2, 2), "RGBA"),
    ]


def test_sheet_puts_pictures_in_rows(pictures: ModuleType) -> None:
    red, blue = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (6, 8), "blue")
    sheet = pictures.sheet([red, blue, blue], columns=2)
    assert sheet.size == (24, 24)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((14, 0)) == (0, 0, 255)
    assert sheet.getpixel((0, 14)) == (0, 0, 255)
    assert sheet.getpixel((12, 0)) == (255, 255, 255)


def test_opened_pictures_are_upright_and_thumbnails_small(pictures: ModuleType, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (400, 200), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert pictures.opened(tmp_path / "turned.jpg").size == (200, 400)
    assert pictures.shrunk(pictures.opened(tmp_path / "turned.jpg"), 100).size == (50, 100)


def test_masks_become_grey_pictures(pictures: ModuleType) -> None:
    from_masks = pictures.from_masks
    batch = torch.tensor([[[0.0, 1.0], [0.5, 2.0]], [[1.0, 1.0], [1.0, -1.0]]])
    first, second, single = from_masks([batch, batch[0]])
    assert (first.mode, first.tobytes()) == ("L", bytes([0, 255, 128, 255]))
    assert second.tobytes() == bytes([255, 255, 255, 0])
    assert single.tobytes() == first.tobytes()
