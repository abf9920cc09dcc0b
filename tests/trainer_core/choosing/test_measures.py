"""Measures of embeddings against closed forms, and what the comparison makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer_core.choosing import measures
from trainer_core.choosing.comparing import Comparison
from trainer_core.choosing.prompts import Picture


def points(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_distances_are_euclidean() -> None:
    found = measures.distances(points((0, 0), (3, 4)), points((0, 0), (0, 4), (6, 8)))
    assert found.tolist() == [[0, 4, 10], [5, 3, 5]]


def test_spacing_is_the_mean_distance_to_the_nearest_fellow() -> None:
    assert measures.spacing(points((0,), (1,), (3,), (7,))) == pytest.approx((1 + 1 + 2 + 4) / 4)
    # a double has the same nearest fellow as its twin, and is none itself
    assert measures.spacing(points((0,), (0,), (3,))) == pytest.approx(3)
    assert measures.spacing(points((5, 5))) is None
    assert measures.spacing(points((5, 5), (5, 5))) is None


def test_spread_is_the_mean_distance_of_two() -> None:
    assert measures.spread(points((0,), (1,), (3,))) == pytest.approx((1 + 3 + 2) / 3)
    assert measures.spread(points((1,), (1,))) is None
    assert measures.spread(points((1,))) is None


def test_likeness_is_one_for_copies_and_a_half_at_the_unit() -> None:
    training = points((0, 0), (10, 0))
    assert measures.likeness(training, training, 2.0) == 1
    assert measures.likeness(points((0, 2), (10, -2)), training, 2.0) == pytest.approx(1 / 2)
    # 6 from the nearer one, then none: (2 / 8 + 1) / 2
    assert measures.likeness(points((-6, 0), (10, 0)), training, 2.0) == pytest.approx(0.625)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_variety_is_one_where_all_differ_and_one_of_them_where_none_does(count: int) -> None:
    far = 1000 * torch.eye(count)
    assert measures.variety(far, 1.0) == pytest.approx(1)
    assert measures.variety(far[:1].repeat(count, 1), 1.0) == pytest.approx(1 / count)


def test_variety_of_two_pictures_and_of_two_groups() -> None:
    # K / 2 has the eigenvalues (1 ± k) / 2, k = exp(-d² / 2u²)
    k = math.exp(-(3.0**2) / (2 * 2.0**2))
    high, low = (1 + k) / 2, (1 - k) / 2
    expected = math.exp(-high * math.log(high) - low * math.log(low)) / 2
    assert measures.variety(points((0, 0), (0, 3)), 2.0) == pytest.approx(expected)
    # three of one kind and one of another: eigenvalues 3/4 and 1/4
    groups = points((0, 0), (0, 0), (0, 0), (900, 0))
    assert measures.variety(groups, 1.0) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / 4)
    assert measures.variety(points((1, 1)), 1.0) is None


def test_leak_is_the_distance_of_pairs_in_units() -> None:
    by_base = points((0, 0), (4, 0))
    assert measures.leak(by_base, by_base, 4.0) == 0
    assert measures.leak(points((3, 4), (4, 0)), by_base, 5.0) == pytest.approx(0.5)
    assert measures.leak(by_base.flip(0), by_base, 4.0) == pytest.approx(1)


class Corner:
    """Embeds a picture as its upper left pixel's red and green."""

    name = "corner"

    def embed(self, pictures: list[Image.Image]) -> Tensor:
        return torch.tensor([one.getpixel((0, 0))[:2] for one in pictures], dtype=torch.float32)  # type: ignore[index]


def flat(red: int, green: int = 0) -> Image.Image:
    return Image.new("RGB", (2, 2), (red, green, 0))


def test_a_comparison_uses_units_of_the_training_and_the_bases_pictures() -> None:
    shown, other = (Picture(f"shown {k}", k, True) for k in range(2))
    plain, further = (Picture(f"plain {k}", k, False) for k in range(2))
    by_base = {shown: flat(200), other: flat(220), plain: flat(0, 100), further: flat(0, 150)}
    comparison = Comparison(Corner(), [flat(10), flat(20)], by_base)
    assert comparison.of(by_base)["leak"] == 0
    found = comparison.of({shown: flat(30), other: flat(30), plain: flat(0, 100), further: flat(0, 175)})
    # nearest training picture 10 away, which is as far as they are from each other; half of 25 in units of 50
    assert found == {"leak": pytest.approx(0.25), "likeness": pytest.approx(0.5), "variety": pytest.approx(0.5)}


def test_what_there_are_no_pictures_for_is_not_measured() -> None:
    shown = Picture("shown", 1, True)
    assert Comparison(Corner(), [], {shown: flat(1)}).of({shown: flat(2)}) == {
        "leak": None,
        "likeness": None,
        "variety": None,
    }
