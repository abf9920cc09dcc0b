"""A sample's prediction, and its gradient, are the same in a batch as alone: texts, guidance and controls of each."""

from __future__ import annotations

from typing import Any

import pytest

from ..pack import module
from .hosted import opened, relative, sample_of, sampled, training
from .zoo import MODELS
from .zoo.record import Draw

torch = pytest.importorskip("torch")

TRAINED = [name for name, model in MODELS.items() if not model.refused]
TIMES = (0.23, 0.71, 0.5)


def given_to(name: str, seed: int, tokens: int) -> dict[str, Any]:
    """What a text of so many tokens gives, by way of the cache, and what nodes add to that."""
    record, draw = MODELS[name], Draw(seed, tokens)
    options = {"pooled_output": None} | record.text(draw)
    text = sample_of([[options.pop("cross_attn", None), options]]).text
    return module("nodes.comfy_models.conditioning").to_options(text) | record.given(draw)


@pytest.mark.parametrize("name", TRAINED)
def test_each_gets_what_it_gets_alone(name: str) -> None:
    """Three samples, two with texts of one length, at different times; and alone it is what the sampler computes."""
    record, model = MODELS[name], MODELS[name].make()
    if module("nodes.comfy_models.traits").refusal(model.model):
        pytest.skip("refused")
    base, names = opened(model), ["main", "audio"][: len(record.latents)]
    samples = [dict(zip(names, record.streams(seed=k), strict=True)) for k in range(len(TIMES))]
    given = [given_to(name, 7 + k, 7 + k % 2) for k in range(len(TIMES))]
    times = torch.tensor(TIMES)
    with training(base) as denoiser, torch.no_grad():
        batch = {key: torch.cat([one[key] for one in samples]) for key in names}
        together = base.predict(denoiser, batch, times, given)
        for k, one in enumerate(samples):
            alone = base.predict(denoiser, one, times[k : k + 1], [given[k]])
            for key in names:
                assert together[key].shape == batch[key].shape
                assert relative(together[key][k : k + 1], alone[key]) < 1e-5
    if len(names) == 1:
        x, sigma = samples[0]["main"], base.schedule.sigma(times[:1])
        options = {key: one for key, one in given[0].items() if key not in ("cross_attn", "denoise_mask")}
        expected = sampled(model, x, sigma, [[given[0].get("cross_attn"), options]])
        given[0].pop("denoise_mask", None)
        with training(base) as denoiser, torch.no_grad():
            found = base.predict(denoiser, samples[0], times[:1], given[:1])["main"]
        assert relative(base.schedule.sampling.calculate_denoised(sigma, found, x), expected) < 1e-5


def words(name: str, seed: int, tokens: int, **more: Any) -> Any:
    record, draw = MODELS[name], Draw(seed, tokens)
    options = {"pooled_output": None} | record.text(draw)
    return sample_of([[options.pop("cross_attn", None), options]], **more)


def _picture(seed: int, *size: int) -> Any:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


EDITS = {
    # samples, guidance of each
    "flux1": ([{}, {}, {}], torch.tensor([1.0, 3.5, 2.0])),
    "flux1_kontext": ([{"controls": (_picture(1, 16, 16, 16),)}, {"controls": (_picture(2, 16, 8, 12),)}, {}], None),
    "qwen_edit": ([{"controls": (_picture(k, 16, 1, 8, 8),) * k} for k in range(3)], None),
    "sdxl": ([{"time_ids": (512, 640, 0, 64, 128, 128)}, {"time_ids": (64, 64, 0, 0, 128, 128)}, {}], None),
}


@pytest.mark.parametrize("name", EDITS)
def test_guidance_controls_and_sizes_are_of_each(name: str) -> None:
    """As the data hands them over; each counts, and the gradient of the batch is the sum of those alone."""
    record, (more, guidance) = MODELS[name], EDITS[name]
    base = opened(record.make())
    samples = [words(name, 5, 7 + k % 2, **one) for k, one in enumerate(more)]
    noisy = record.streams()[0].expand(len(samples), *record.latents[0][1:])
    times = torch.full((len(samples),), 0.6)
    towards = _picture(3, *noisy.shape)
    with training(base) as denoiser:
        weight = next(one for name, one in denoiser.named_parameters() if one.dim() == 2 and "blocks" in name)
        weight.requires_grad_(True)
        together = base.predict(denoiser, {"main": noisy}, times, base.collate(samples, guidance))["main"]
        (summed,) = torch.autograd.grad((together * towards).sum(), weight)
        gradient = torch.zeros_like(summed)
        for k, sample in enumerate(samples):
            value = None if guidance is None else float(guidance[k])
            conditioning = base.collate([sample], value)
            alone = base.predict(denoiser, {"main": noisy[k : k + 1]}, times[:1], conditioning)["main"]
            gradient += torch.autograd.grad((alone * towards[k : k + 1]).sum(), weight)[0]
            assert relative(together[k : k + 1], alone) < 1e-5
            weight.grad = None
    assert relative(summed, gradient) < 1e-5
    assert all(relative(together[0], together[k]) > 1e-3 for k in range(1, len(samples)))
