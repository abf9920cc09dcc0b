"""A step of the models that people train at their real size, on the meta device: shapes and dtypes without weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ..pack import module
from .running import predict
from .zoo.real import REAL
from .zoo.record import Draw


class Shapes(Draw):
    """Draws nothing."""

    def __init__(self) -> None:
        self.tokens = 7

    def __call__(self, *shape: int) -> Any:
        import torch

        return torch.empty(shape, device="meta")


@pytest.fixture(autouse=True)
def _without_values(_comfy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention as on GPUs, as the one for the CPU asks how much memory there is; experts get all of the tokens."""
    from comfy.ldm.modules import attention
    from torch.fx.experimental import _config as config

    for name, loaded in list(sys.modules.items()):
        for function in ("optimized_attention", "optimized_attention_masked"):
            if name.startswith("comfy.") and hasattr(loaded, function):
                monkeypatch.setattr(loaded, function, attention.attention_pytorch)
    with config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


UNUSED = {
    "Qwen-Image and Edit-2509": {
        *("transformer_blocks.59.attn.to_add_out", "transformer_blocks.59.txt_mlp.net.0.proj"),
        "transformer_blocks.59.txt_mlp.net.2",
    }
}
"""Layers of what the last block says of the text, which nothing reads."""


@pytest.mark.parametrize("name", REAL)
def test_every_layer_gets_a_gradient(name: str) -> None:
    import torch

    adapters, config = module("trainer_core.adapters.adapter"), module("trainer_core.config")
    layers, recompute = module("nodes.comfy_models.layers"), module("trainer_core.memory.recompute")
    billions, model = REAL[name]
    found = model.found()
    found.set_inference_dtype(torch.bfloat16, None)
    whole = found.get_model({}, "", device="meta")
    whole.model_sampling.to("meta")
    denoiser = whole.diffusion_model
    assert sum(one.numel() for one in denoiser.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    with torch.device("meta"):
        adapter = adapters.Adapter(denoiser, config.AdapterConfig(rank=16), layers.targets(denoiser)["all"], 0)
    recompute.recompute_blocks(denoiser, module("trainer_core.memory.blocks").blocks_of(denoiser).values())
    draw = Shapes()
    options = model.text(draw) | model.given(draw)
    streams = [draw(*shape) for shape in model.latents]
    with module("nodes.comfy_models.kernels").differentiable(), module("trainer_core.memory.saved").mutable_saved():
        said = predict(whole, streams, [[options.pop("cross_attn"), options]], 0.5)
        assert [one.shape for one in said] == [one.shape for one in streams]
        sum(one.float().square().mean() for one in said).backward()
    without = {
        path for path, layer in adapter.layers.items() if any(one.grad is None for one in layer.trained.values())
    }
    assert without == UNUSED.get(name, set())
