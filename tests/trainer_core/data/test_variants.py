"""Which forms a picture has, which one is drawn, and which part of it a crop shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.config import DatasetConfig
from trainer_core.data.buckets import bucket_size, cover_box
from trainer_core.data.variants import CROPS, LEAST_SHOWN, Variant, box_of, choose_variant, variants_of

SETTINGS: list[dict[str, Any]] = [
    {"flip_x": x, "flip_y": y, "crop": crop}
    for x in (False, True)
    for y in (False, True)
    for crop in ("center", "random")
]


def dataset(**settings: Any) -> DatasetConfig:
    return DatasetConfig(folder="x", **settings)


def test_without_settings_there_is_the_plain_picture_alone() -> None:
    assert variants_of(dataset()) == [Variant()] == [choose_variant(dataset(), 1, "a")]
    assert Variant() == Variant(flip_x=False, flip_y=False, crop=0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_form_is_drawn_and_as_often_as_any_other(settings: dict[str, Any]) -> None:
    one = dataset(**settings)
    forms = variants_of(one)
    expected = 2 ** (settings["flip_x"] + settings["flip_y"]) * (CROPS if settings["crop"] == "random" else 1)
    assert len(forms) == len(set(forms)) == expected
    draws = 4000
    counts = Counter(choose_variant(one, 7, step, "0/a.png@64x64", 1) for step in range(draws))
    assert set(counts) == set(forms)
    # chi-squared with 15 degrees of freedom at most: over 44.3 once in 10,000 times, and the draws are fixed
    assert sum((count - draws / expected) ** 2 / (draws / expected) for count in counts.values()) < 44.3


def test_a_draw_is_a_function_of_its_place() -> None:
    one = dataset(flip_x=True, flip_y=True, crop="random")
    assert [choose_variant(one, k, "a") for k in range(50)] == [choose_variant(one, k, "a") for k in range(50)]
    assert [choose_variant(one, k, "a") for k in range(50)] != [choose_variant(one, k, "b") for k in range(50)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_validates_is_never_changed(settings: dict[str, Any]) -> None:
    """Two validations must see the same pictures."""
    one = dataset(role="validation", **settings)
    assert variants_of(one) == [Variant()]
    assert {choose_variant(one, step) for step in range(50)} == {Variant()}


IMAGES = st.tuples(st.integers(16, 3000), st.integers(16, 3000))
FORMS = st.builds(Variant, st.booleans(), st.booleans(), st.integers(0, CROPS))


@given(IMAGES, st.integers(16, 1024), FORMS, st.text("0123456789abcdef", min_size=4, max_size=8))
def test_a_box_lies_in_the_image_has_the_buckets_aspect_and_is_not_enlarged(
    image: tuple[int, int], resolution: int, variant: Variant, content: str
) -> None:
    size = bucket_size(*image, resolution, 16)
    left, top, right, bottom = box_of(*image, size, variant, content)
    assert 0 <= left < right <= image[0]
    assert 0 <= top < bottom <= image[1]
    width, height = right - left, bottom - top
    assert width / height == pytest.approx(size[0] / size[1], rel=1e-6)
    assert width >= size[0] * (1 - 1e-9)
    assert height >= size[1] * (1 - 1e-9)
    whole = cover_box(*image, size)
    assert width >= LEAST_SHOWN * (whole[2] - whole[0]) * (1 - 1e-9)


@given(IMAGES, st.integers(16, 1024), FORMS)
def test_mirroring_does_not_move_the_box(image: tuple[int, int], resolution: int, variant: Variant) -> None:
    size = bucket_size(*image, resolution, 16)
    assert box_of(*image, size, variant, "c") == box_of(*image, size, Variant(crop=variant.crop), "c")


def test_random_parts_differ_between_themselves_and_between_files_and_are_fixed() -> None:
    def boxes(content: str) -> list[tuple[float, ...]]:
        return [box_of(1000, 700, (512, 352), Variant(crop=k), content) for k in range(CROPS + 1)]

    assert len(set(boxes("a"))) == CROPS + 1
    assert boxes("a") == boxes("a")
    assert not set(boxes("a")[1:]) & set(boxes("b")[1:])
    assert boxes("a")[0] == cover_box(1000, 700, (512, 352)) == boxes("b")[0]


def test_random_parts_reach_every_corner() -> None:
    """Over many files: places are uniform, so some box begins near each edge and some ends near it."""
    boxes = [box_of(1000, 1000, (256, 256), Variant(crop=1), f"file {k}") for k in range(2000)]
    slack = 1000 * (1 - LEAST_SHOWN)
    assert min(box[0] for box in boxes) < 1 < slack - 10 < max(box[0] for box in boxes)
    assert min(box[1] for box in boxes) < 1 < slack - 10 < max(box[1] for box in boxes)
    assert min(box[2] - box[0] for box in boxes) < 1000 * LEAST_SHOWN + 10
    assert max(box[2] - box[0] for box in boxes) > 990


def test_a_picture_as_small_as_its_bucket_has_one_part() -> None:
    """Anything smaller would have to be enlarged."""
    assert {box_of(64, 64, (64, 64), Variant(crop=k), "a") for k in range(CROPS + 1)} == {(0, 0, 64, 64)}
