"""Every model of the zoo runs, and no class of ComfyUI's is missing."""

from __future__ import annotations

import pytest

from .running import predict
from .zoo import MODELS, NONE

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
"""ComfyUI's own."""


def test_every_class_is_there_once() -> None:
    """As a model or with a reason why there is none."""
    import comfy.supported_models

    classes = {kind.__name__ for kind in comfy.supported_models.models}
    made = {model.kind for model in MODELS.values()}
    assert classes == made | NONE.keys()
    assert not made & NONE.keys()


@pytest.mark.parametrize("name", MODELS)
def test_it_predicts(name: str) -> None:
    """Finite values of the latents' shape, that depend on the text, as loaders leave the model: inference tensors."""
    import torch

    model = MODELS[name]
    with torch.inference_mode():
        loaded = model.make().model
        streams = model.streams()
        said = predict(loaded, streams, model.conditioning())
        other = predict(loaded, streams, model.conditioning(seed=4))
    assert all(weight.is_inference() and not weight.requires_grad for weight in loaded.diffusion_model.parameters())
    formats = loaded.latent_format
    assert formats.latent_channels in {one.shape[1] for one in streams}
    assert streams[0].dim() - 2 == formats.latent_dimensions
    assert [one.shape for one in said] == [one.shape for one in streams]
    assert all(one.isfinite().all() for one in said)
    assert all(1e-3 < one.std() < 1e3 for one in said)
    assert all((one - another).abs().max() > 1e-4 for one, another in zip(said, other, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_samples_of_a_batch_do_not_mix(name: str) -> None:
    """Two samples at two noise levels come out as each would alone, but for models that say otherwise: so they do."""
    import torch

    model = MODELS[name]
    with torch.inference_mode():
        loaded = model.make().model
        first, second = model.streams(2), model.streams(12)
        levels = [float(loaded.model_sampling.percent_to_sigma(part)) for part in (0.3, 0.7)]
        apart = [
            predict(loaded, sample, model.conditioning(), *[level] * len(sample[0]))
            for sample, level in zip((first, second), levels, strict=True)
        ]
        both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
        sigmas = [level for level in levels for _ in first[0]]
        try:
            together = predict(loaded, both, model.conditioning(), *sigmas)
        except ValueError as refusal:
            if not model.alone or "batch size 1" not in str(refusal):
                raise
            return
    expected = [torch.cat(pair) for pair in zip(*apart, strict=True)]
    close = [
        torch.allclose(one, other, atol=1e-3 * float(other.std()))
        for one, other in zip(together, expected, strict=True)
    ]
    assert all(close) is not bool(model.alone)


def test_the_seed_alone_makes_a_model() -> None:
    import torch

    first, again, other = (MODELS["flux1"].make(seed).model.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["diffusion_model.img_in.weight"], other["diffusion_model.img_in.weight"])
