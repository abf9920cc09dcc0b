"""Buckets: divisible, never enlarged, of about the right area, for images of any aspect."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from trainer_core.data.buckets import bucket_size, bucket_sizes, cover_box
from trainer_core.data.images import to_bucket

edges = st.integers(16, 6000)
divisors = st.sampled_from([8, 16, 32])
resolutions = st.integers(16, 2048)


@given(edges, edges, resolutions, divisors)
def test_bucket_is_divisible_no_larger_than_the_image_and_within_the_area(
    width: int, height: int, resolution: int, divisor: int
) -> None:
    assume(min(width, height) >= divisor)
    w, h = bucket_size(width, height, resolution, divisor)
    assert w % divisor == h % divisor == 0
    assert divisor <= w <= width
    assert divisor <= h <= height
    assert w * h <= max(resolution, divisor) ** 2


@given(st.integers(300, 6000), st.floats(0.25, 4), st.sampled_from([256, 512, 768, 1024]))
def test_bucket_uses_the_area_and_keeps_the_aspect(width: int, aspect: float, resolution: int) -> None:
    """Rounding down by less than one unit on each edge: no more may be lost of the ideal size."""
    height = round(width / aspect)
    assume(height >= 300)
    scale = min(1, resolution / math.sqrt(width * height))
    ideal = width * scale, height * scale
    w, h = bucket_size(width, height, resolution, 16)
    assert abs(w - ideal[0]) < 16
    assert abs(h - ideal[1]) < 16
    assert w * h > (ideal[0] - 16) * (ideal[1] - 16)


@pytest.mark.parametrize(
    ("image", "resolution", "bucket"),
    [
        ((1024, 1024), 512, (512, 512)),
        ((1000, 1000), 1024, (992, 992)),  # not enlarged
        ((64, 64), 1024, (64, 64)),
        ((2000, 1000), 512, (720, 352)),  # ideal 724 x 362; 720 x 352 is 2.045, nearest to 2 within the area
        ((1920, 1080), 1024, (1360, 768)),  # ideal 1365 x 768: 1360 x 768 = 1.77
        ((512, 768), 512, (416, 624)),  # ideal 418 x 627: 416 x 624 is 2 : 3 exactly
        ((10_000, 16), 512, (10_000, 16)),  # a strip keeps its short edge, and its area is allowed
        ((100_000, 20), 512, (16_384, 16)),  # 512² / 16
        ((17, 31), 512, (16, 16)),
    ],
)
def test_buckets_by_hand(image: tuple[int, int], resolution: int, bucket: tuple[int, int]) -> None:
    assert bucket_size(*image, resolution, 16) == bucket
    assert bucket_size(*image[::-1], resolution, 16) == bucket[::-1], "turning the image turns the bucket"


@given(st.integers(64, 700), st.integers(64, 700), st.integers(64, 400), st.sampled_from([8, 16, 32]))
def test_no_other_bucket_next_to_the_ideal_size_crops_less(
    width: int, height: int, resolution: int, divisor: int
) -> None:
    """Against a search through all sizes, with the share that is kept as an exact fraction."""
    scale = min(1.0, resolution / math.sqrt(width * height))
    assume(min(width, height) * scale >= divisor)

    def kept(w: int, h: int) -> Fraction:
        """The narrower aspect over the wider: what a crop from one to the other keeps."""
        first, second = Fraction(w, h), Fraction(width, height)
        return min(first, second) / max(first, second)

    allowed = [
        (w, h)
        for w in range(divisor, width + 1, divisor)
        for h in range(divisor, height + 1, divisor)
        if w * h <= resolution**2 and abs(w - width * scale) <= divisor and abs(h - height * scale) <= divisor
    ]
    found = bucket_size(width, height, resolution, divisor)
    # an edge that is a multiple already has a neighbour on both sides; the code looks at the one above alone
    inner = [(w, h) for w, h in allowed if w > width * scale - divisor and h > height * scale - divisor]
    assert kept(*found) >= max(kept(*size) for size in inner) - Fraction(1, 10**8)


@given(edges, edges, st.lists(resolutions, min_size=1, max_size=4), divisors)
def test_no_bucket_enlarges_its_image(width: int, height: int, several: list[int], divisor: int) -> None:
    """What a bucket shows of an image has at least the bucket's pixels."""
    assume(min(width, height) >= divisor)
    for size in bucket_sizes(width, height, several, divisor):
        left, top, right, bottom = cover_box(width, height, size)
        assert right - left >= size[0] - 1e-6
        assert bottom - top >= size[1] - 1e-6


@given(edges, edges, resolutions)
def test_turning_an_image_turns_its_bucket_in_area(width: int, height: int, resolution: int) -> None:
    """A square's ties may fall to either side; the area never differs."""
    w, h = bucket_size(width, height, resolution, 16)
    assert math.prod(bucket_size(height, width, resolution, 16)) == w * h


@given(edges, edges, st.lists(resolutions, min_size=1, max_size=4))
def test_several_resolutions_give_each_size_once(width: int, height: int, several: list[int]) -> None:
    sizes = bucket_sizes(width, height, several, 16)
    assert len(sizes) == len(set(sizes))
    assert set(sizes) == {bucket_size(width, height, resolution, 16) for resolution in several}


def test_a_small_image_comes_once_for_all_resolutions_above_it() -> None:
    assert bucket_sizes(300, 300, (256, 512, 768), 16) == [(256, 256), (288, 288)]


@pytest.mark.parametrize("size", [(15, 400), (400, 15), (1, 1)])
def test_too_small_an_image_is_refused_with_its_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*16"):
        bucket_size(*size, 512, 16)


@given(edges, edges, resolutions)
@example(49, 98, 22)
@example(94, 188, 67)
@example(49, 98, 45)
def test_cover_box_lies_inside_the_image(width: int, height: int, resolution: int) -> None:
    """Pillow refuses a box that sticks out by the least rounding error."""
    size = bucket_size(width, height, resolution, 16)
    left, top, right, bottom = cover_box(width, height, size)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=1e-6)
    assert left == pytest.approx(width - right, abs=1e-6 * width)
    assert top == pytest.approx(height - bottom, abs=1e-6 * height)
    # as much as can be is shown: one edge whole
    assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


@pytest.mark.parametrize("width", range(47, 200, 7))
def test_images_of_every_width_go_into_their_buckets(width: int) -> None:
    """Twice as tall as wide, at a smaller resolution: the box covers the whole image, where rounding shows."""
    for resolution in (32, 48, 64, 96):
        size = bucket_size(width, 2 * width, resolution, 16)
        assert to_bucket(Image.new("RGB", (width, 2 * width)), size).shape == (3, size[1], size[0])
