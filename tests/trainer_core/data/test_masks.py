"""Masks on the latents' grid: exact averages, weights of mean 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer_core.data.masks import area_average, loss_weights, without_first


def grey(values: list[list[int]] | np.ndarray) -> Image.Image:
    return Image.fromarray(np.array(values, np.uint8))


def test_cells_of_whole_pixels_are_their_means() -> None:
    values = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)
    ours = area_average(grey(values), (0, 0, 48, 32), (6, 4))
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(values / 255.0)[None], 8)
    assert (ours.shape, ours.dtype) == ((1, 4, 6), torch.float32)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_pixel_between_two_cells_counts_in_both_by_its_share() -> None:
    """Three pixels in two cells: the middle one is cut in half; (1 + 0.5 · 0) / 1.5 and (0.5 · 0 + 0) / 1.5."""
    assert area_average(grey([[255, 0, 0]]), (0, 0, 3, 1), (2, 1)).tolist()[0][0] == pytest.approx([2 / 3, 0])
    assert area_average(grey([[0, 255, 0]]), (0, 0, 3, 1), (2, 1)).tolist()[0][0] == pytest.approx([1 / 3, 1 / 3])


def test_a_box_begins_within_a_pixel() -> None:
    # from 0.5 to 2.5 of (255, 0, 255): cells 0.5-1.5 and 1.5-2.5, each half white
    assert area_average(grey([[255, 0, 255]]), (0.5, 0, 2.5, 1), (2, 1)).tolist()[0][0] == pytest.approx([0.5, 0.5])
    # rows are the second axis: from 1.25 to 2 of a column (0, 255): three quarters of the white pixel, all of the box
    assert area_average(grey([[0], [255]]), (0, 0.75, 1, 2), (1, 1)).item() == pytest.approx(1 / 1.25)


def test_a_small_mask_is_spread_over_a_finer_grid() -> None:
    ours = area_average(grey([[255, 0], [0, 255]]), (0, 0, 2, 2), (4, 4))
    assert ours[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.data())
def test_the_average_over_the_grid_is_the_average_over_the_box(
    width: int, height: int, columns: int, rows: int, seed: int, data: st.DataObject
) -> None:
    """Whatever the scale, nothing of the mask is lost; against a count over a grid of 1/8 pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    eighths = data.draw(st.tuples(*(st.integers(0, 8 * edge - 1) for edge in (width, height))))
    ends = [data.draw(st.integers(start + 1, 8 * edge)) for start, edge in zip(eighths, (width, height), strict=True)]
    fine = np.kron(values / 255.0, np.ones((8, 8)))[eighths[1] : ends[1], eighths[0] : ends[0]]
    box = (eighths[0] / 8, eighths[1] / 8, ends[0] / 8, ends[1] / 8)
    assert area_average(grey(values), box, (columns, rows)).mean().item() == pytest.approx(fine.mean(), abs=1e-5)


def test_weights_by_hand() -> None:
    mask = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    # 0.1 + 0.9 · m: 1, 0.1, 0.55, 0.55 with mean 0.55
    expected = torch.tensor([[[1.0, 0.1], [0.55, 0.55]]]) / 0.55
    torch.testing.assert_close(loss_weights(mask, invert=False, minimum=0.1), expected)
    inverted = torch.tensor([[[0.1, 1.0], [0.55, 0.55]]]) / 0.55
    torch.testing.assert_close(loss_weights(mask, invert=True, minimum=0.1), inverted)


def test_an_empty_or_full_mask_with_a_minimum_weighs_all_alike() -> None:
    for value in (0.0, 1.0):
        for invert in (False, True):
            weights = loss_weights(torch.full((1, 4, 4), value), invert, 0.1)
            torch.testing.assert_close(weights, torch.ones(1, 4, 4))


def test_minimum_one_switches_a_mask_off() -> None:
    torch.testing.assert_close(loss_weights(torch.rand(1, 4, 4), False, 1.0), torch.ones(1, 4, 4))


@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), st.booleans(), st.floats(0.01, 1))
def test_weights_have_mean_one_and_are_never_negative(values: list[float], invert: bool, minimum: float) -> None:
    weights = loss_weights(torch.tensor(values).view(1, 2, 2), invert, minimum)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert weights.min() >= 0


@pytest.mark.parametrize(("value", "invert"), [(0.0, False), (1.0, True)])
def test_a_mask_that_leaves_nothing_is_refused(value: float, invert: bool) -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        loss_weights(torch.full((1, 2, 2), value), invert, 0.0)


def test_weights_without_the_first_frame_by_hand() -> None:
    weights = torch.tensor([[[[1.0]], [[0.5]], [[1.5]]]])
    # 0, 0.5, 1.5 with mean 2/3
    assert without_first(weights).flatten().tolist() == pytest.approx([0, 0.75, 2.25])
    assert weights.flatten().tolist() == [1, 0.5, 1.5]
    with pytest.raises(ValueError, match="nothing to train on"):
        without_first(torch.tensor([[[[3.0]], [[0.0]], [[0.0]]]]))
