"""The embedding by the data's own statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from trainer_core.choosing.statistics import Statistics, features, shrinkage

CELLS = 64


def noise(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(count)]
    return [one.resize((64, 64), Image.Resampling.NEAREST) for one in small]


def test_features_are_colours_of_cells_and_edges_by_direction() -> None:
    (flat,) = features([Image.new("RGB", (64, 64), (255, 51, 0))])
    assert torch.allclose(flat[: 3 * CELLS], torch.tensor([1.0, 0.2, 0.0]).repeat_interleave(CELLS))
    assert not flat[3 * CELLS :].any()
    halves = Image.new("RGB", (64, 64))
    halves.paste((255, 255, 255), (32, 0, 64, 64))
    (upright,) = features([halves])
    (level,) = features([halves.rotate(90)])
    edges = [one[3 * CELLS :].reshape(8, 8, 8) for one in (upright, level)]  # direction, row, column
    # the step lies between two cells, each of which holds one column of 8 of its 64 pixels, where light rises by 1
    assert edges[0].nonzero().tolist() == [[0, row, column] for row in range(8) for column in (3, 4)]
    assert edges[0][0, 0, 3] == pytest.approx(8 / 64)
    assert {place[0] for place in edges[1].nonzero().tolist()} == {4}, "a right angle is half of all directions"


def test_features_do_not_depend_on_the_size_of_flat_cells() -> None:
    (picture,) = noise(1)
    large = picture.resize((256, 256), Image.Resampling.NEAREST)
    assert torch.allclose(features([picture]), features([large]), atol=1e-6)


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double() * torch.tensor([3.0, 1, 1, 0.5, 0.1])
    rows = rows - rows.mean(0)
    covariance = rows.T @ rows / 9
    target = covariance.trace() / 5 * torch.eye(5)
    spread = sum(float((torch.outer(row, row) - covariance).square().sum()) for row in rows) / 9**2
    assert shrinkage(rows) == pytest.approx(spread / float((covariance - target).square().sum()))
    assert shrinkage(torch.zeros(3, 4)) == 1


def test_the_reference_is_white_as_far_as_it_tells() -> None:
    reference = noise(12)
    statistics = Statistics(reference)
    found = statistics.embed(reference).double()
    assert found.mean(0).abs().max() < 1e-5
    raw = features(reference).double()
    raw = raw - raw.mean(0)
    # the ratio of the largest to the smallest direction that varies, before and after
    ratios = [float((values[0] / values[10]).square()) for values in map(torch.linalg.svdvals, (raw, found))]
    assert ratios[1] < ratios[0]


def test_equal_pictures_and_a_single_one_are_no_trouble() -> None:
    (picture,) = noise(1)
    for reference in ([picture], [picture] * 3):
        statistics = Statistics(reference)
        near, far = statistics.embed([picture, Image.new("RGB", (64, 64), "red")])
        assert near.norm() < 1e-4
        assert far.isfinite().all()
        assert far.norm() > 1
