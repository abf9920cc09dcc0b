"""The low-rank branch: against the whole SVD, and against a least-squares search by gradient descent."""

from __future__ import annotations

import pytest
import torch

from trainer_core.memory.low_rank import fitted, largest
from trainer_core.randomness import normal_like


def _gaussian(*shape: int, name: str = "weight") -> torch.Tensor:
    return normal_like(shape, "test", name)


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (700, 600)])
def test_the_largest_part_is_that_of_the_whole_svd(shape: tuple[int, int]) -> None:
    weight = _gaussian(*shape)
    down, up = largest(weight, 12)
    best = torch.linalg.svdvals(weight)[12:].norm()  # Eckart and Young
    assert (down.shape, up.shape) == ((12, shape[1]), (shape[0], 12))
    assert (weight - up @ down).norm() <= best * 1.002
    again = largest(weight, 12)
    assert torch.equal(again[0], down)
    assert torch.equal(again[1], up)


def test_a_weight_of_that_rank_is_found_whole() -> None:
    weight = _gaussian(600, 7, name="up") @ _gaussian(7, 640, name="down")
    down, up = largest(weight, 7)
    assert (weight - up @ down).norm() < 1e-5 * weight.norm()
    assert down.norm().item() == pytest.approx(up.norm().item(), rel=1e-4)


def test_an_error_of_that_rank_is_made_good_whatever_the_inputs() -> None:
    error = _gaussian(40, 4, name="up") @ _gaussian(4, 30, name="down")
    inputs = _gaussian(10, 30, name="x").double() * torch.logspace(-3, 2, 30)  # fewer than there are dimensions
    covariance = inputs.T @ inputs
    down, up = fitted(error.double() @ covariance, covariance, error, 4)
    assert (error - up @ down).norm() < 1e-4 * error.norm()
    nothing = torch.zeros(30, 30)
    down, up = fitted(nothing.new_zeros(40, 30), nothing, error, 4)  # no inputs: the weight alone counts
    assert (error - up @ down).norm() < 1e-5 * error.norm()


def test_the_branch_is_the_least_squares_solution() -> None:
    """Against alternating least squares on the samples themselves."""
    inputs = (_gaussian(400, 12, name="x") * torch.logspace(-1, 1, 12)).double()
    missing = (_gaussian(20, 12) @ inputs.T.float()).double() + 0.3 * _gaussian(20, 400, name="noise").double()
    error = torch.zeros(20, 12)
    damping = 1e-3 * (inputs.T @ inputs).trace() / 12
    down, up = fitted(missing @ inputs, inputs.T @ inputs, error, 3)

    def cost(delta: torch.Tensor) -> float:
        return float((missing - delta @ inputs.T).square().sum() + damping * delta.square().sum())

    rows = torch.cat([inputs, damping.sqrt() * torch.eye(12, dtype=torch.float64)])
    aims = torch.cat([missing, torch.zeros(20, 12, dtype=torch.float64)], 1).T
    right = _gaussian(12, 3, name="start").double()
    for _ in range(300):
        left = torch.linalg.lstsq(rows @ right, aims).solution  # (3, 20)
        right = torch.linalg.lstsq(rows, aims @ torch.linalg.pinv(left)).solution
    assert cost((up @ down).double()) == pytest.approx(cost((right @ left).T), rel=1e-6)
    plain_down, plain_up = largest(missing @ inputs @ torch.linalg.inv(inputs.T @ inputs), 3)
    assert cost((up @ down).double()) < 0.9 * cost(plain_up @ plain_down), "the inputs' spread does not count"
