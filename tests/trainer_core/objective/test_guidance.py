"""Differential and contrastive guidance against gradients and optima worked out otherwise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer_core.objective.guidance import contrastive_scale, contrastive_target, differential_target
from trainer_core.objective.losses import elementwise


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(kind: str, scale: float | None) -> Tensor:
    """Of the loss in the prediction, with differential guidance or without."""
    prediction, target = normal(3, 5).requires_grad_(), normal(3, 5, seed=1)
    aim = target if scale is None else differential_target(prediction, target, scale)
    elementwise(prediction, aim, kind).mean().backward()
    assert prediction.grad is not None
    return prediction.grad


# --- differential ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 3.0, 8.0])
def test_the_squared_loss_has_exactly_so_many_times_its_gradient(scale: float) -> None:
    torch.testing.assert_close(gradient("mse", scale), scale * gradient("mse", None), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_the_absolute_loss_has_the_gradient_it_had(scale: float) -> None:
    assert torch.equal(gradient("mae", scale), gradient("mae", None))


def test_the_squared_loss_itself_grows_by_the_square() -> None:
    prediction, target = normal(3, 5), normal(3, 5, seed=1)
    loss = elementwise(prediction, differential_target(prediction, target, 3.0)).mean()
    torch.testing.assert_close(loss, 9 * elementwise(prediction, target).mean())


def test_the_aim_by_hand_and_without_a_graph() -> None:
    """From 1 towards 2, three times as far: 4. A prediction that is right stays."""
    prediction = torch.tensor([1.0, -2.0]).requires_grad_()
    aim = differential_target(prediction, torch.tensor([2.0, -2.0]), 3.0)
    assert aim.tolist() == [4.0, -2.0]
    assert not aim.requires_grad


# --- contrastive -----------------------------------------------------------------------------------------------------


def test_the_target_is_pushed_away_from_the_promptless_prediction() -> None:
    """u + g (target - u), g by sample: 1 + 3 · (2 - 1) = 4, and 1 + 0.5 · (2 - 1) = 1.5."""
    target, promptless = torch.full((2, 1, 2, 2), 2.0), torch.ones(2, 1, 2, 2)
    aim = contrastive_target(target, promptless, torch.tensor([3.0, 0.5]))
    assert aim[0].unique().tolist() == [4.0]
    assert aim[1].unique().tolist() == [1.5]


@pytest.mark.parametrize("project", [False, True])
def test_a_scale_of_one_is_the_plain_target(project: bool) -> None:
    target, promptless = normal(3, 4, 2, 2), normal(3, 4, 2, 2, seed=1)
    torch.testing.assert_close(contrastive_target(target, promptless, torch.ones(3), project), target)


def test_a_distilled_model_that_is_right_already_is_asked_for_what_it_says() -> None:
    """With a data target c and an unguided prediction u, a sampler with guidance g draws along u + g (c - u)."""
    c, u, g = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), 3.5
    guided = g * c - (g - 1) * u
    torch.testing.assert_close(contrastive_target(c, u, torch.full((2,), g)), guided, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 1000), st.floats(1.5, 10))
def test_the_projection_is_the_least_squares_fit(seed: int, scale: float) -> None:
    """Against torch's solver, sample by sample; and what is added beyond the fit is orthogonal to u."""
    target, u = normal(3, 4, 2, 2, seed=seed).double(), normal(3, 4, 2, 2, seed=seed + 1).double()
    aim = contrastive_target(target, u, torch.full((3,), scale, dtype=torch.float64), project=True)
    for k in range(3):
        fit = torch.linalg.lstsq(u[k].reshape(-1, 1), target[k].reshape(-1, 1)).solution.item()
        expected = fit * u[k] + scale * (target[k] - fit * u[k])
        torch.testing.assert_close(aim[k].double(), expected, rtol=1e-5, atol=1e-5)
        assert ((aim[k] - target[k]) * u[k]).sum().abs() < 1e-4 * scale


def test_the_projection_of_nothing_is_nothing() -> None:
    target = normal(1, 8)
    aim = contrastive_target(target, torch.zeros(1, 8), torch.tensor([3.0]), project=True)
    torch.testing.assert_close(aim, 3 * target)


def test_the_promptless_prediction_gets_no_gradient() -> None:
    promptless = normal(2, 4).requires_grad_()
    assert not contrastive_target(normal(2, 4, seed=1), promptless, torch.ones(2), project=True).requires_grad


def test_a_short_promptless_prediction_is_computed_in_float32() -> None:
    aim = contrastive_target(normal(2, 64), normal(2, 64, seed=1).bfloat16(), torch.full((2,), 3.0), project=True)
    assert aim.dtype == torch.float32


def test_schedules_of_the_scale() -> None:
    """constant: g everywhere. sigma: 1 without noise, g at pure noise, straight between (0.25: 1 + 3 · 0.25)."""
    t = torch.tensor([0.0, 0.25, 1.0])
    assert contrastive_scale(4.0, t, "constant").tolist() == [4.0, 4.0, 4.0]
    assert contrastive_scale(4.0, t, "sigma").tolist() == [1.0, 1.75, 4.0]
