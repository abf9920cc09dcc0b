"""A model larger than the card: layers stay in the computer's memory and come one by one, also while it is trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ...trainer_core.memory.adversary import Adversary
from ..pack import module
from .zoo import MODELS

pytestmark = pytest.mark.host


@pytest.fixture
def partly(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """ComfyUI finds no room for any layer, as it would on a full card; gives the sizes that it was asked to leave."""
    import comfy.model_management

    asked: list[Any] = []

    def load(patchers: list[Any], memory_required: float = 0, **_: Any) -> None:
        asked.append(memory_required)
        for patcher in patchers:
            if not patcher.model.model_lowvram:
                patcher.patch_model(patcher.load_device, lowvram_model_memory=1)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    return asked


@pytest.mark.parametrize("recompute", [True, False, "streamed"])
@pytest.mark.parametrize("name", ["flux1", "sdxl", "wan21_t2v"])
def test_gradients_are_those_of_the_model_that_fits(
    name: str, recompute: bool | str, request: pytest.FixtureRequest
) -> None:
    """Also where some blocks are streamed, and the others do not fit."""
    import torch

    whole = gradients(name, bool(recompute))
    asked = request.getfixturevalue("partly")
    parts = gradients(name, bool(recompute), offloaded=True, streamed=recompute == "streamed")
    assert asked[0] == 0
    assert asked[-1] > 0
    assert whole
    for ours, theirs in zip(parts, whole, strict=True):
        assert torch.equal(ours, theirs)


def gradients(name: str, recompute: bool, offloaded: bool = False, streamed: bool = False) -> list[Any]:
    """Of a LoRA whose B is not zero any more, for one noisy sample."""
    import torch

    from .hosted import opened
    from .zoo.encoders import clip, vae

    config = module("trainer_core.config")
    adapters, conditioning = module("trainer_core.adapters.adapter"), module("trainer_core.families.conditioning")
    model = MODELS[name]
    base = opened(model.make(), clip=clip(model), vae=vae(model))
    denoiser = base.load_denoiser_on_host() if streamed else base.load_denoiser()
    adapter = adapters.Adapter(denoiser, config.AdapterConfig(rank=2), base.spec.targets["all"], 0)
    source = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += torch.randn(parameter.shape, generator=source) * 0.05
    if streamed:
        blocks = module("trainer_core.memory.blocks").blocks_of(denoiser)
        module("trainer_core.memory.streaming").Streamed(denoiser, blocks, len(blocks) // 2, Adversary())
        base.bring(denoiser, base.device)
    layers = [one for one in denoiser.modules() if hasattr(one, "comfy_cast_weights")]
    assert all(one.comfy_cast_weights for one in layers) == offloaded
    if recompute:
        base.recompute_blocks(denoiser, module("trainer_core.memory.settings").MemorySettings())
    (text,) = base.encode_prompts(["a red cube"])
    noisy = {"main": model.streams()[0]}
    with base.training_pass():
        given = base.collate([conditioning.Conditioning("", text)])
        predicted = base.predict(denoiser, noisy, torch.tensor([0.6]), given)["main"]
        predicted.square().mean().backward()
    base.close()
    return [parameter.grad for parameter in adapter.parameters()]


def test_the_model_is_parted_once_and_not_before_each_step(partly: list[Any]) -> None:
    """Again for larger latents, and when the VAE or the text encoder was used in between."""
    import torch

    from .hosted import opened
    from .zoo.encoders import clip, vae

    conditioning, model = module("trainer_core.families.conditioning"), MODELS["flux1"]
    base = opened(model.make(), clip=clip(model), vae=vae(model))
    denoiser = base.load_denoiser()
    (text,) = base.encode_prompts(["a red cube"])

    def step(size: int) -> int:
        with torch.no_grad():
            given = base.collate([conditioning.Conditioning("", text)])
            base.predict(denoiser, {"main": torch.zeros(1, 16, size, size)}, torch.tensor([0.6]), given)
        return len(asked)

    trained = base._of(denoiser)
    loading = module("nodes.comfy_models.loading")
    asked = partly
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_loaded", lambda: [SimpleNamespace(model=trained.patcher)])
        first = step(16)
        assert [step(16), step(8), step(16)] == [first] * 3
        assert step(32) == first + 1
        base.free_vae()
        assert step(16) == first + 2
    assert asked[first] == 4 * asked[first - 1]  # four times as many tokens
