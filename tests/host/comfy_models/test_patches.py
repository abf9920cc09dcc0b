"""What nodes did to a MODEL counts in training as it does in sampling."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ..pack import ROOT, module
from .hosted import Clip, linked, opened, relative, sample_of, sampled, states, training
from .zoo import MODELS

torch = pytest.importorskip("torch")

WEIGHT = "diffusion_model.double_blocks.0.img_attn.proj.weight"


def _shift(model: Any) -> None:
    """As ModelSamplingSD3."""
    import comfy.model_sampling as kinds

    found = type("ModelSamplingAdvanced", (kinds.ModelSamplingDiscreteFlow, kinds.CONST), {})(model.model.model_config)
    found.set_parameters(shift=7.0, multiplier=500.0)
    model.add_object_patch("model_sampling", found)


def _merged(model: Any) -> None:
    """As LoraLoader."""
    import comfy.sd

    source = torch.Generator().manual_seed(5)
    path = WEIGHT.removesuffix(".weight")
    tensors = {
        f"{path}.lora_A.weight": torch.randn(4, 128, generator=source),
        f"{path}.lora_B.weight": torch.randn(128, 4, generator=source),
        f"{path}.alpha": torch.tensor(4.0),
    }
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 0.7, 0)
    model.patches, model.patches_uuid = patched.patches, patched.patches_uuid
    assert model.patches


def _attention(model: Any) -> None:
    model.set_model_attn1_output_patch(lambda out, _options: out * 1.25)


def _block(model: Any) -> None:
    def again(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        found = extra["original_block"](args)
        return {**found, "img": found["img"] * 0.8}

    model.set_model_patch_replace(again, "dit", "double_block", 0)


def _around_model(model: Any) -> None:
    """A function around the model that asks it twice, and mixes what it says."""

    def mix(apply: Callable[..., Any], args: dict[str, Any]) -> Any:
        once = apply(args["input"], args["timestep"], **args["c"])
        return once - 0.3 * apply(args["input"] * 0.5, args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(mix)


def _around_apply(model: Any) -> None:
    import comfy.patcher_extension

    def mix(run: Any, x: Any, *args: Any, **more: Any) -> Any:
        return 0.9 * run(x, *args, **more) + 0.2 * x

    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, mix)


def _inside_apply(model: Any) -> None:
    import comfy.patcher_extension

    def louder(run: Any, x: Any, *args: Any, **more: Any) -> Any:
        return run(x * 1.1, *args, **more)

    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, louder)


def _weights(model: Any) -> None:
    model.add_weight_wrapper(WEIGHT, lambda weight: weight * 1.5)


GUIDANCE = 2.0


def text(record: Any) -> list[list[Any]]:
    return [[cross, {**options, "guidance": GUIDANCE}] for cross, options in record.conditioning()]


PATCHES = [_shift, _merged, _attention, _block, _around_model, _around_apply, _inside_apply, _weights]


def patched(*patches: Callable[[Any], None], name: str = "flux1") -> Any:
    model = MODELS[name].make().clone()
    for patch in patches:
        patch(model)
    return model


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
    if names != [_shift]:  # whose effect is on the times, and too small on one prediction
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


@pytest.mark.parametrize("patch", [_merged, _shift, _weights])
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
    model = patched(_weights)
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


# the name of what links hold


def test_every_patch_has_a_name_of_its_own() -> None:
    names = [linked(patched(*patches)).source for patches in ((), *((one,) for one in PATCHES))]
    assert len({*names}) == len(names)
    assert linked(patched()).source == names[0]


def scaled(by: float) -> Callable[..., Any]:
    return lambda out, _options: out * by


class Scale:
    __slots__ = ("by",)

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, out: Any, _options: Any) -> Any:
        return out * self.by


def by_number(out: Any, _options: Any, by: Any = 1.0) -> Any:
    return out * by


def _default(by: float) -> Callable[..., Any]:
    def patch(out: Any, _options: Any, given: float = by) -> Any:
        return out * given

    return patch


LIKE = {
    "closures": (scaled(1.5), scaled(1.6)),
    "two functions of one name": ((lambda out, _: out * 2), (lambda out, _: out + 2)),
    "partials": (functools.partial(by_number, by=2.0), functools.partial(by_number, by=3.0)),
    "slots": (Scale(2.0), Scale(3.0)),
    "defaults": (_default(2.0), _default(3.0)),
    "methods": (Scale(2.0).__call__, Scale(3.0).__call__),
}


@pytest.mark.parametrize("kind", LIKE)
def test_like_patches_are_told_apart(kind: str) -> None:
    names = []
    for patch in LIKE[kind]:
        model = patched()
        model.set_model_attn1_output_patch(patch)
        names.append(linked(model).source)
    assert names[0] != names[1]


def test_arrays_and_kinds_of_sampling_are_told_apart() -> None:
    import comfy.model_sampling as kinds
    import numpy as np

    names = []
    for kind in (kinds.EPS, kinds.V_PREDICTION):
        model = patched(name="sd15")
        found = type("Advanced", (kinds.ModelSamplingDiscrete, kind), {})(SimpleNamespace(sampling_settings={}))
        model.add_object_patch("model_sampling", found)
        names.append(linked(model).source)
    for value in (1.0, 2.0):
        model = patched(name="sd15")
        model.set_model_attn1_output_patch(functools.partial(by_number, by=np.full(3, value)))
        names.append(linked(model).source)
    assert len({*names}) == 4


_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.host.pack import comfy_on_cpu
comfy_on_cpu(Path(sys.argv[2]))
from tests.host.comfy_models import test_patches as here
model = here.patched(*here.PATCHES)
for name, (patch, _) in here.LIKE.items():
    model.set_model_attn1_output_patch(patch)
print(here.linked(model).source)
"""


def test_the_name_is_the_same_in_another_process(comfyui: Any) -> None:
    command = [sys.executable, "-c", _SCRIPT, str(ROOT), str(comfyui)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    model = patched(*PATCHES)
    for patch, _ in LIKE.values():
        model.set_model_attn1_output_patch(patch)
    assert found.strip() == linked(model).source
