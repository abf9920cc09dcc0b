"""What nodes did to a MODEL counts in training as it does in sampling."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ..pack import module
from .hosted import Clip, linked, opened, relative, sample_of, sampled, states, training
from .patches import GUIDANCE, PATCHES, merged_lora, patched, shifted, text, wrapped_weight
from .zoo import MODELS

torch = pytest.importorskip("torch")


def _together(patches: list[Callable[[Any], None]]) -> str:
    return "".join(one.__name__ for one in patches)


@pytest.mark.parametrize("names", [*([one] for one in PATCHES), PATCHES[:4], PATCHES], ids=_together)
def test_training_predicts_what_the_sampler_computes(names: list[Callable[[Any], None]]) -> None:
    """Of the same noisy latents, and otherwise than without the patch."""
    record, model, plain = MODELS["flux1"], patched(*names), patched()
    base = opened(model)
    (x,) = record.streams()
    t = torch.tensor([0.6])
    sigma = base.schedule.sigma(t)
    before = states(model)
    expected = sampled(model, x, sigma, text(record))
    with training(base) as denoiser:
        given = base.collate([sample_of(text(record))], GUIDANCE)
        found = base.predict(denoiser, {"main": x}, t, given)["main"]
    denoised = base.schedule.sampling.calculate_denoised(sigma, found, x)
    assert relative(denoised, expected) < 2e-6
    if names != [shifted]:  # whose effect is on the times, and too small on one prediction
        assert relative(sampled(plain, x, sigma, text(record)), expected) > 1e-3
    again = sampled(model, x, sigma, text(record))
    assert torch.equal(again, expected)
    after = states(model)
    assert before.keys() == after.keys()
    if not model.patches:
        assert all(before[name][0] == after[name][0] for name in before if name.startswith("diffusion_model."))


def test_the_targets_are_of_the_model_that_is_sampled() -> None:
    """A node that makes an ε-model a v-model: the schedule, and the spec's default, follow."""
    import comfy.model_sampling as kinds

    model = MODELS["sd15"].make().clone()
    found = type("Advanced", (kinds.ModelSamplingDiscreteFlow, kinds.CONST), {})(SimpleNamespace(sampling_settings={}))
    model.add_object_patch("model_sampling", found)
    base = opened(model)
    assert base.schedule.prediction == "flow"
    assert base.spec.default_timestep_type == "sigmoid"


def test_a_unet_with_attention_patches() -> None:
    record = MODELS["sd15"]
    model = patched(name="sd15")
    model.set_model_attn1_output_patch(lambda out, _options: out * 1.5)
    model.set_model_attn2_patch(lambda q, k, v, _options: (q, k * 0.7, v))
    base = opened(model)
    (x,) = record.streams()
    t = torch.tensor([0.6])
    sigma = base.schedule.sigma(t)
    expected = sampled(model, x, sigma, text(record))
    with training(base) as denoiser:
        found = base.predict(denoiser, {"main": x}, t, base.collate([sample_of(text(record))], GUIDANCE))["main"]
    assert relative(base.schedule.sampling.calculate_denoised(sigma, found, x), expected) < 2e-6


@pytest.mark.parametrize("patch", [merged_lora, shifted, wrapped_weight])
def test_another_clone_was_sampled_before(patch: Callable[[Any], None]) -> None:
    """ComfyUI keeps the patched weights of the MODEL that was sampled last: they are not those of its other clones."""
    record, plain = MODELS["flux1"], MODELS["flux1"].make()
    (x,) = record.streams()
    t = torch.tensor([0.6])
    mark = opened(plain).denoiser_fingerprint()
    source = linked(plain).source
    expected = sampled(plain, x, t, text(record))
    clone = plain.clone()
    patch(clone)
    sampled(clone, x, t, text(record))
    base = opened(plain)
    assert base.denoiser_fingerprint() == mark
    assert linked(plain).source == source
    sampled(clone, x, t, text(record))
    with training(base) as denoiser:
        given = base.collate([sample_of(text(record))], GUIDANCE)
        found = base.predict(denoiser, {"main": x}, t, given)["main"]
    assert relative(x - t * found, expected) < 2e-6


def test_a_patched_text_encoder_was_used_before() -> None:
    clip = Clip()
    mark = opened(patched(), clip=clip).text_fingerprint()
    clone = Clip()
    clone.cond_stage_model, clone.patcher = clip.cond_stage_model, clip.patcher.clone()
    clone.patcher.add_patches({"0.weight": ("diff", (torch.ones(2, 2),))})
    changed = opened(patched(), clip=clone).text_fingerprint()
    import comfy.model_management

    comfy.model_management.load_models_gpu([clone.patcher])
    assert opened(patched(), clip=clip).text_fingerprint() == mark != changed


def test_weight_wrappers_outlast_unloading() -> None:
    """An adapted layer is one level below the place that the node named."""
    model = patched(wrapped_weight)
    base, record = opened(model), MODELS["flux1"]
    adapter = module("trainer_core.adapters.adapter")
    config = module("trainer_core.config").AdapterConfig(rank=2)
    (x,) = record.streams()
    with training(base) as denoiser:
        given = base.collate([sample_of(text(record))], GUIDANCE)
        adapter.Adapter(denoiser, config, base.spec.targets["all"], 1)
        before = base.predict(denoiser, {"main": x}, torch.tensor([0.6]), given)["main"]
        base.bring(denoiser, "meta")
        after = base.predict(denoiser, {"main": x}, torch.tensor([0.6]), given)["main"]
    assert torch.equal(before, after)


def test_callbacks_come_as_in_sampling() -> None:
    from comfy.patcher_extension import CallbacksMP

    model, record, calls = patched(), MODELS["flux1"], []
    model.add_callback(CallbacksMP.ON_PRE_RUN, lambda _: calls.append("begins"))
    model.add_callback(CallbacksMP.ON_CLEANUP, lambda _: calls.append("ends"))
    base = opened(model)
    with training(base) as denoiser:
        given = base.collate([sample_of(text(record))])
        base.predict(denoiser, {"main": record.streams()[0]}, torch.tensor([0.6]), given)
    assert (calls[0], calls[-1]) == ("begins", "ends")


def test_injections_are_refused() -> None:
    """They change the modules of the MODEL that is in the graph, which are not those that are trained."""
    import comfy.model_patcher

    model = patched()
    nothing = comfy.model_patcher.PatcherInjection(inject=lambda _: None, eject=lambda _: None)
    model.set_injections("bypass_lora", [nothing])
    with pytest.raises(Exception, match="bypass_lora") as caught:
        linked(model)
    assert type(caught.value).__name__ == "BaseModelError"
