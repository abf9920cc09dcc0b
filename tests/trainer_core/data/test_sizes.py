"""Sizes and crops that SDXL is told: they must say where in the scaled (and mirrored) original the pixels come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainer_core.config import DatasetConfig
from trainer_core.data.images import load_image, to_bucket
from trainer_core.data.variants import Variant, box_of, variants_of
from trainer_core.data.views import View
from trainer_core.files import sha256_of

SIZES = [((300, 200), (128, 128)), ((200, 300), (128, 192)), ((260, 140), (192, 64))]
"""Pictures and buckets, width and height."""


@pytest.fixture(params=SIZES, ids=str)
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[int, int]]:
    """Red grows from left to right and green from top to bottom, so a pixel's colour is its place."""
    (width, height), size = request.param
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, np.zeros_like(across)], axis=-1).round().astype(np.uint8)
    path = tmp_path / "ramp.png"
    Image.fromarray(pixels).save(path)
    return path, size


def view_of(path: Path, size: tuple[int, int], variant: Variant) -> View:
    with Image.open(path) as image:
        target = image.size
    content = sha256_of(path)
    return View(path, content, target, box_of(*target, size, variant, content), size, variant, (0, 0, 0))


def test_cropping_the_scaled_original_there_gives_the_same_pixels(picture: tuple[Path, tuple[int, int]]) -> None:
    """As diffusers' SDXL training script does it: scale all of it, mirror it, crop at the offsets."""
    path, size = picture
    variants = [*variants_of(DatasetConfig(folder=".", crop="random", flip_x=True, flip_y=True)), Variant()]
    for variant in variants:
        view = view_of(path, size, variant)
        height, width, top, left, shown_height, shown_width = view.time_ids
        assert (width, height) == view.target
        assert (shown_width, shown_height) == size
        box_width, box_height = view.box[2] - view.box[0], view.box[3] - view.box[1]
        scaled = round(width * size[0] / box_width), round(height * size[1] / box_height)
        assert 0 <= left <= scaled[0] - size[0] + 1
        assert 0 <= top <= scaled[1] - size[1] + 1
        whole = load_image(path).resize(scaled, Image.Resampling.BICUBIC)
        whole = ImageOps.mirror(whole) if variant.flip_x else whole
        whole = ImageOps.flip(whole) if variant.flip_y else whole
        expected = to_bucket(whole.crop((left, top, left + size[0], top + size[1])), size)
        # a pixel's offset is a step of 1 to 2 of 255 levels; rounding may cost half a pixel and half a level
        assert (view.pixels() - expected).abs().max() * 127.5 < 2.5
        assert (view.pixels() - expected).mean((1, 2)).abs().max() * 127.5 < 1.5


def test_offsets_by_hand() -> None:
    """1000x600 scaled to a height of 512 is 853.33 wide, of which 341.33 go: half of it on each side."""
    centre = View(Path(), "", (1000, 600), (200.0, 0.0, 800.0, 600.0), (512, 512), Variant(), (0, 0, 0))
    assert centre.time_ids == (600, 1000, 0, 171, 512, 512)
    box = (100.0, 50.0, 600.0, 550.0)
    # 512 / 500 of 100 and 50, and of what is left on the other sides: 400 and 50
    given = [(Variant(), (51, 102)), (Variant(flip_x=True), (51, 410)), (Variant(flip_x=True, flip_y=True), (51, 410))]
    for variant, offsets in given:
        assert View(Path(), "", (1000, 600), box, (512, 512), variant, (0, 0, 0)).time_ids[2:4] == offsets
    whole = View(Path(), "", (512, 512), (0.0, 0.0, 512.0, 512.0), (512, 512), Variant(flip_x=True), (0, 0, 0))
    assert whole.time_ids == (512, 512, 0, 0, 512, 512)
