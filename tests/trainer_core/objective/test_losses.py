"""The losses against torch's, hand numbers and, for masks, sums by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer_core.objective.losses import LOSS_TYPES, elementwise, sample_means


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "delta", "expected"),
    [
        ("mse", 1.0, [0.0, 0.25, 1.0, 9.0]),
        ("mae", 1.0, [0.0, 0.5, 1.0, 3.0]),
        # ½d² up to δ, then δ(|d| - δ/2)
        ("huber", 1.0, [0.0, 0.125, 0.5, 2.5]),
        ("huber", 2.0, [0.0, 0.125, 0.5, 4.0]),
        ("huber", 0.5, [0.0, 0.125, 0.375, 1.375]),
        # ½d²/δ up to δ, then |d| - δ/2
        ("smooth_l1", 1.0, [0.0, 0.125, 0.5, 2.5]),
        ("smooth_l1", 2.0, [0.0, 0.0625, 0.25, 2.0]),
        ("smooth_l1", 0.5, [0.0, 0.25, 0.75, 2.75]),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_by_hand(kind: str, delta: float, expected: list[float], sign: int) -> None:
    d = sign * torch.tensor([0.0, 0.5, 1.0, 3.0])
    assert elementwise(d + 2, torch.full_like(d, 2.0), kind, delta).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("delta", [0.01, 0.1, 1.0, 100.0])
def test_against_torch(delta: float) -> None:
    prediction, target = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    theirs = {
        "mse": functional.mse_loss(prediction, target, reduction="none"),
        "mae": functional.l1_loss(prediction, target, reduction="none"),
        "huber": functional.huber_loss(prediction, target, reduction="none", delta=delta),
        "smooth_l1": functional.smooth_l1_loss(prediction, target, reduction="none", beta=delta),
    }
    assert set(theirs) == set(LOSS_TYPES)
    for kind, expected in theirs.items():
        torch.testing.assert_close(elementwise(prediction, target, kind, delta), expected)


@pytest.mark.parametrize("kind", LOSS_TYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_inputs_are_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    """Differences of bfloat16 numbers are none, and in float16 300² overflows. Inside autocast too."""
    prediction, target = normal(4, 50).mul(300).to(dtype), normal(4, 50, seed=1).mul(0.01).to(dtype)
    expected = elementwise(prediction.float(), target.float(), kind, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = elementwise(prediction, target, kind, 0.3)
    for loss in (elementwise(prediction, target, kind, 0.3), inside):
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert torch.equal(loss, expected)


def test_mixed_precision_does_not_lose_the_difference() -> None:
    """A bfloat16 prediction of 1 and a float32 target of 1.001: d is 0.001, which bfloat16 cannot tell from 0."""
    loss = elementwise(torch.ones(1, dtype=torch.bfloat16), torch.tensor([1.001]), "mae")
    assert loss.item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_the_gradient_is_the_derivative(kind: str) -> None:
    d = torch.tensor([-2.0, -0.3, 0.2, 1.7])
    prediction = d.clone().requires_grad_()
    elementwise(prediction, torch.zeros(4), kind, 0.5).sum().backward()
    by_hand = {
        "mse": 2 * d,
        "mae": d.sign(),
        "huber": d.clamp(-0.5, 0.5),
        "smooth_l1": d.clamp(-0.5, 0.5) / 0.5,
    }[kind]
    torch.testing.assert_close(prediction.grad, by_hand)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="wavelet"):
        elementwise(torch.zeros(1), torch.zeros(1), "wavelet")


# --- means and masks -------------------------------------------------------------------------------------------------


def test_every_sample_has_its_own_mean() -> None:
    losses = torch.stack([torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 5.0)])
    losses[1, 0, 0, 0] = 17.0
    assert sample_means(losses).tolist() == [1.0, 6.0]


def test_a_mask_weighs_places_in_all_channels() -> None:
    """Left half 1, right half 4, over two channels; a mask of 2 and 0 leaves the left."""
    losses = torch.tensor([1.0, 4.0]).expand(1, 2, 2, 2)
    mask = torch.tensor([2.0, 0.0]).expand(1, 1, 2, 2)
    assert sample_means(losses).tolist() == [2.5]
    assert sample_means(losses, mask).tolist() == [1.0]
    assert sample_means(losses, 2 - mask).tolist() == [4.0]


def test_masks_belong_to_their_samples() -> None:
    losses = torch.tensor([1.0, 4.0]).expand(2, 3, 2, 2)
    mask = torch.stack([torch.tensor([2.0, 0.0]).expand(1, 2, 2), torch.tensor([0.0, 2.0]).expand(1, 2, 2)])
    assert sample_means(losses, mask).tolist() == [1.0, 4.0]


@given(st.integers(0, 2**32))
def test_a_mask_of_mean_one_keeps_the_size_of_an_even_loss(seed: int) -> None:
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(seed)) + 0.01
    mask = mask / mask.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(sample_means(torch.full((2, 3, 5, 7), 2.5), mask), torch.full((2,), 2.5))
    losses = normal(2, 3, 5, 7, seed=seed % 1000).square()
    torch.testing.assert_close(sample_means(losses, torch.ones(2, 1, 5, 7)), sample_means(losses))


def test_what_is_masked_out_has_no_gradient() -> None:
    prediction, mask = normal(1, 3, 4, 4).requires_grad_(), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 2.0
    sample_means(elementwise(prediction, normal(1, 3, 4, 4, seed=1)), mask).sum().backward()
    assert not prediction.grad[..., 2:].any()
    assert prediction.grad[..., :2].all()
