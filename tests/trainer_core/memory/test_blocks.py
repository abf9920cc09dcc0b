"""Which blocks diffusers' models have, in the order in which they are computed. ComfyUI's: tests/host/comfy_models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer_core.memory.blocks import blocks_of

from .models import flux, given, unet


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (flux, {"FluxTransformerBlock", "FluxSingleTransformerBlock"}),
        (unet, {"BasicTransformerBlock", "ResnetBlock2D"}),
    ],
)
def test_all_of_their_kinds_in_the_order_of_computing(make: Callable[[], nn.Module], kinds: set[str]) -> None:
    model = make()
    computed: list[str] = []
    for path, module in model.named_modules():
        if type(module).__name__ in kinds:
            module.register_forward_pre_hook(lambda *_, path=path: computed.append(path))
    with torch.no_grad():
        model(**given(model))
    assert list(blocks_of(model)) == computed
    assert len(computed) == (4 if make is flux else 12)
