"""The fused kernels have the gradients of what they compute."""

from __future__ import annotations

from typing import Any

import pytest

from ..pack import module
from .zoo.record import Draw


def _inputs(name: str) -> list[Any]:
    import torch

    draw = Draw(0)
    q, k = draw(1, 2, 3, 8), draw(1, 2, 3, 8)
    weights = [draw(8).abs() + 0.5, draw(8).abs() + 0.5]
    angles = draw(1, 1, 3, 4)
    cos, sin = angles.cos(), angles.sin()
    rotations = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    if "adaln" in name:
        return [q[0], *weights]
    if name.startswith("rms") and name.endswith("1"):
        return [q, rotations, weights[0]]
    if name.startswith("rms"):
        return [q, k, rotations, *weights]
    return [q, rotations] if name.endswith("1") else [q, k, rotations]


@pytest.mark.filterwarnings("ignore:Input #. requires gradient")  # the kernels know no doubles
@pytest.mark.parametrize(
    "name",
    [
        *("apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1"),
        *("rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1", "adaln", "rms_adaln"),
    ],
)
def test_gradients_are_what_finite_differences_say(name: str) -> None:
    import comfy_kitchen
    import torch

    with module("nodes.comfy_models.kernels").differentiable():
        inputs = [one.requires_grad_() for one in _inputs(name)]
        assert torch.autograd.gradcheck(getattr(comfy_kitchen, name), inputs, eps=1e-2, atol=2e-3, rtol=1e-2)


def test_the_other_mode_is_back_afterwards() -> None:
    import comfy.model_management

    def fail() -> None:
        with module("nodes.comfy_models.kernels").differentiable():
            assert comfy.model_management.in_training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert comfy.model_management.in_training is False
