"""What must hold for every model that is trained: the same checks for each, with ComfyUI's own code as the judge."""

from __future__ import annotations

from typing import Any

import pytest

from ..pack import module
from .running import predict
from .zoo import MODELS
from .zoo.record import NO_GRADIENT

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
"""ComfyUI's own."""

RUNNING_ONLY = [name for name, model in MODELS.items() if model.refused == NO_GRADIENT]
TRAINED = [name for name in MODELS if name not in RUNNING_ONLY]
"""Also those that are refused for want of data: what holds for a class is known when data sets can hold more."""


def _part(name: str) -> Any:
    return module(f"nodes.comfy_models.{name}")


class Copy:
    """A model to train beside the one that a loader made, with an adapter whose weights are not at their start."""

    def __init__(self, patcher: Any, recompute: bool) -> None:
        import torch

        adapters, config = module("trainer_core.adapters.adapter"), module("trainer_core.config")
        self.model = _part("shadow").shadow(patcher.model)
        denoiser, layers = self.model.diffusion_model, _part("layers")
        convolutions = layers.conv_targets(denoiser)
        self.adapter = adapters.Adapter(
            denoiser,
            config.AdapterConfig(rank=4, conv_rank=2 if convolutions else None),
            layers.targets(denoiser)["all"],
            0,
            conv_targets=convolutions,
        )
        source = torch.Generator().manual_seed(3)
        for weight in self.adapter.parameters():
            weight.data += torch.randn(weight.shape, generator=source) * 0.05
        if recompute:
            blocks = module("trainer_core.memory.blocks").blocks_of(denoiser)
            module("trainer_core.memory.recompute").recompute_blocks(denoiser, blocks.values())

    def loss(self, name: str) -> Any:
        model = MODELS[name]
        said = predict(self.model, model.streams(), model.conditioning())
        return sum((one.float() - 1).square().mean() for one in said)

    def gradients(self, name: str) -> dict[str, Any]:
        """Of the loss, by the name of the weight."""
        import torch

        with _part("kernels").differentiable(), module("trainer_core.memory.saved").mutable_saved():
            self.loss(name).backward()
        named = self.adapter._named().items()
        return {key: torch.zeros_like(weight) if weight.grad is None else weight.grad for key, weight in named}

    def file(self) -> dict[str, Any]:
        """The LoRA under ComfyUI's generic names."""
        import torch

        file: dict[str, Any] = {}
        for layer, delta in self.adapter.deltas().items():
            file[f"diffusion_model.{layer}.lora_A.weight"] = delta.down
            file[f"diffusion_model.{layer}.lora_B.weight"] = delta.up
            file[f"diffusion_model.{layer}.alpha"] = torch.tensor(delta.scale * delta.rank)
        return file


def _norm(values: Any) -> float:
    import torch

    return float(torch.cat([one.flatten().double() for one in values]).norm())


@pytest.mark.parametrize("name", TRAINED)
def test_gradients(name: str) -> None:
    """Those with recomputed blocks are those without, and what the loss does; the loaded model stays as it is."""
    import torch

    model = MODELS[name]
    with torch.inference_mode():
        patcher = model.make()
        before = predict(patcher.model, model.streams(), model.conditioning())
        weights = {key: value.clone() for key, value in patcher.model.state_dict().items()}
    plain, recomputed = Copy(patcher, recompute=False), Copy(patcher, recompute=True)
    expected, found = plain.gradients(name), recomputed.gradients(name)

    error = _norm(found[key] - expected[key] for key in found) / _norm(expected.values())
    idle = [key for key, one in expected.items() if not one.any()]
    slope, measured = _slope(plain, name, expected)
    counted = f"{len(plain.adapter.layers)} layers, {len(idle)} weights idle"
    print(f"{name}: {counted}, recomputed {error:.1e}, slope {measured / slope - 1:+.1e}")
    assert error < 1e-6
    assert measured == pytest.approx(slope, rel=0.02)

    with torch.inference_mode():
        after = predict(patcher.model, model.streams(), model.conditioning())
    assert all(torch.equal(one, another) for one, another in zip(before, after, strict=True))
    assert all(torch.equal(value, weights[key]) for key, value in patcher.model.state_dict().items())


@pytest.mark.parametrize("name", RUNNING_ONLY)
def test_what_has_no_gradients(name: str) -> None:
    """It says so, rather than train on wrong ones."""
    import torch

    with torch.inference_mode():
        patcher = MODELS[name].make()
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        Copy(patcher, recompute=False).gradients(name)


def _slope(copy: Copy, name: str, gradients: dict[str, Any]) -> tuple[float, float]:
    """How fast the loss changes along the gradient: by the gradient, and by going there and back."""
    import torch

    step = 2e-3 / _norm(gradients.values())
    losses = []
    with torch.no_grad(), _part("kernels").differentiable():
        for sign in (1, -2):
            for key, weight in copy.adapter._named().items():
                weight += sign * step * gradients[key]
            losses.append(float(copy.loss(name)))
    return _norm(gradients.values()) ** 2, (losses[0] - losses[1]) / (2 * step)


@pytest.mark.parametrize("name", TRAINED)
def test_the_file_does_in_comfyui_what_was_trained(name: str) -> None:
    import comfy.lora
    import torch

    model = MODELS[name]
    with torch.inference_mode():
        patcher = model.make()
        base = predict(patcher.model, model.streams(), model.conditioning())
    copy = Copy(patcher, recompute=False)
    file = copy.file()
    known = comfy.lora.model_lora_keys_unet(patcher.model, {})
    loaded = comfy.lora.load_lora(file, known)
    assert len(loaded) * 3 == len(file) == len(copy.adapter.layers) * 3
    for strength in (1.0, 0.7):
        copy.adapter.set_strength(strength)
        with torch.no_grad():
            ours = predict(copy.model, model.streams(), model.conditioning())
        with torch.inference_mode():
            adapted = patcher.clone()
            assert len(adapted.add_patches(loaded, strength)) == len(loaded)
            adapted.patch_model()
            theirs = predict(adapted.model, model.streams(), model.conditioning())
            adapted.unpatch_model()
        error = _norm(one - another for one, another in zip(ours, theirs, strict=True))
        change = _norm(one - another for one, another in zip(theirs, base, strict=True))
        print(f"{name} at {strength}: {error / _norm(theirs):.1e} of the output, {error / change:.1e} of the change")
        assert change > 5e-3 * _norm(base)
        assert error < 1e-5 * _norm(theirs)
