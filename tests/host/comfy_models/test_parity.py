"""One base trained through diffusers and through ComfyUI; and what is drawn while training against the stock graph.

Both sides have the weights of the embedded base, the same data and the same seed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..pack import module
from .hosted import linked, lora_of, patcher_of, relative, states, trained

torch = pytest.importorskip("torch")

SHAPE = (16, 8, 8)
ALONE = (
    r"(single_)?transformer_blocks\.\d+\."
    r"(attn\.to_out\.0|attn\.to_add_out|ff(_context)?\.net\.(0\.proj|2)|norm1?(_context)?\.linear|proj_out)"
)
"""Layers of FLUX.1 that ComfyUI has not fused with others, by diffusers' names."""
ALONE_THERE = (
    r"double_blocks\.\d+\.(img|txt)_(attn\.proj|mlp\.[02]|mod\.lin)",
    r"single_blocks\.\d+\.(linear2|modulation\.lin)",
)
STEPS = 6


class Clip:
    """The embedded base's text encoders, as ComfyUI's nodes see them."""

    layer_idx = None

    def __init__(self, base: Any) -> None:
        self._base = base
        base.load_text_encoders()
        self.tokenizer, _, *encoders = base._encoders
        self.cond_stage_model = torch.nn.ModuleList([one for one in encoders if isinstance(one, torch.nn.Module)])
        self.patcher = patcher_of(self.cond_stage_model)

    def tokenize(self, text: str, **_more: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list[list[Any]]:
        found = self._base.encode_prompts([tokens])[0]
        return [[found["text"][None], {"pooled_output": found["pooled"][None]}]]


class Vae:
    """Its VAE, with the raw latents and the Gaussian of ComfyUI's autoencoders."""

    def __init__(self, base: Any, latent_format: Any) -> None:
        from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer

        self._base, self._format = base, latent_format
        base.load_vae()
        self.first_stage_model = torch.nn.Module()
        self.first_stage_model.vae = base._vae
        self.first_stage_model.regularization = DiagonalGaussianRegularizer()

    def encode(self, pixels: Any) -> Any:
        mean, std = self._base.encode_pixels(pixels.movedim(-1, 1) * 2 - 1)
        raw = self._format.process_out(mean["main"])
        spread = self._format.process_out(mean["main"] + std["main"]) - raw
        return self.first_stage_model.regularization(torch.cat([raw, 2 * spread.log()], dim=1))[0]

    def decode(self, latents: Any) -> Any:
        return ((self._base.decode_latents({"main": self._format.process_in(latents)}) + 1) / 2).movedim(1, -1)


@pytest.fixture(scope="module")
def flux() -> Iterator[Any]:
    """The embedded base through diffusers."""
    registry, config = module("trainer_core.families.registry"), module("trainer_core.config")
    base = registry.open_base(config.ModelConfig(device="cpu", dtype="float32"))
    yield base
    base.close()


@pytest.fixture
def model(flux: Any) -> Any:
    """The same as ComfyUI loads it, with the embedded base's shift."""
    import comfy.model_sampling as kinds
    import comfy.sd

    found = comfy.sd.load_diffusion_model(str(flux.denoiser_file), model_options={"dtype": torch.float32})
    sampling = type("FlowSampling", (kinds.ModelSamplingDiscreteFlow, kinds.CONST), {})(found.model.model_config)
    sampling.set_parameters(shift=flux.schedule.fixed_shift, multiplier=1)
    found.add_object_patch("model_sampling", sampling)
    return found


@pytest.fixture
def hosted(flux: Any, model: Any) -> Any:
    """The same as a base that links make."""
    return linked(model, clip=Clip(flux), vae=Vae(flux, model.model.latent_format))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, words in enumerate(("a", "a red circle", "a blue square on white", "green")):
        draw = np.random.default_rng(number)
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(words)
    return folder


def job(base: Any, pictures: Path, **more: Any) -> dict[str, Any]:
    given = {
        "name": "parity",
        "model": base,
        "adapter": {"rank": 4, "targets": "attention", **more.pop("adapter", {})},
        "datasets": [{"folder": str(pictures), "resolutions": [64]}],
        "train": {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-3, "seed": 3, "timestep_type": "shift"},
    }
    return given | more


def worked(run: Any) -> Any:
    if run.error:
        raise run.error
    return run


def warm(model: Any, file: Path) -> dict[str, Any]:
    """A LoRA to start from, of layers that are the same on both sides."""
    import re

    from safetensors.torch import save_file

    source, tensors = torch.Generator().manual_seed(9), {}
    for path, layer in model.model.diffusion_model.named_modules():
        if any(re.fullmatch(one, path) for one in ALONE_THERE):
            outputs, inputs = layer.weight.shape
            name = f"diffusion_model.{path}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, inputs, generator=source) / inputs**0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, 4, generator=source) * 0.02
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, file)
    return tensors


def test_the_same_lora(
    flux: Any, model: Any, hosted: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained through diffusers and through ComfyUI, it differs by rounding only."""
    start = warm(model, tmp_path / "start.safetensors")
    monkeypatch.setitem(flux.spec.targets, "attention", (ALONE,))
    layers = module("nodes.comfy_models.layers")
    monkeypatch.setattr(layers, "targets", lambda _: {"attention": ALONE_THERE})
    found = {}
    for name, base in (("diffusers", {"device": "cpu", "dtype": "float32"}), ("comfyui", hosted)):
        given = job(base, pictures, adapter={"warm_start": str(tmp_path / "start.safetensors")})
        run = worked(trained(tmp_path / name, given))
        found[name] = lora_of(run), [line["loss"] for line in run.run.metrics() if "loss" in line]
    ours, theirs = found["diffusers"][0], found["comfyui"][0]
    assert ours.keys() == theirs.keys() == start.keys()
    apart = {key: relative(theirs[key], ours[key]) for key in start if not key.endswith(".alpha")}
    learnt = {key: relative(theirs[key] - start[key], ours[key] - start[key]) for key in apart}
    losses = [abs(a / b - 1) for a, b in zip(found["comfyui"][1], found["diffusers"][1], strict=True)]
    logging.getLogger(__name__).info(
        "after %d updates: tensors differ by %.1e at most, what they learnt by %.1e, losses by %.1e",
        *(STEPS, max(apart.values()), max(learnt.values()), max(losses)),
    )
    assert len(found["comfyui"][1]) == STEPS
    assert max(losses) < 1e-5
    assert max(apart.values()) < 1e-4
    assert max(learnt.values()) < 1e-2


def test_gradients_of_fused_weights(flux: Any, model: Any, hosted: Any) -> None:
    """In ComfyUI q, k and v (and a single block's first layer) are one weight: its gradient is that of the parts."""
    conditioning = module("trainer_core.families.conditioning").Conditioning
    base = module("nodes.comfy_models.base").ComfyBase.open(hosted)
    source = torch.Generator().manual_seed(2)
    noisy, towards = torch.randn(2, *SHAPE, generator=source), torch.randn(2, *SHAPE, generator=source)
    t = torch.tensor([0.31, 0.84])
    words = ("a red circle", "a blue square on white")
    before = states(model)
    gradients: dict[str, dict[str, Any]] = {}
    for name, one in (("diffusers", flux), ("comfyui", base)):
        one.load_text_encoders()
        samples = [
            conditioning(text, embedding) for text, embedding in zip(words, one.encode_prompts(words), strict=True)
        ]
        with one.training_pass():
            denoiser = one.load_denoiser().requires_grad_(True)
            said = one.predict(denoiser, {"main": noisy}, t, one.collate(samples))["main"]
            (said * towards).sum().backward()
        gradients[name] = {path: weight.grad for path, weight in denoiser.named_parameters() if weight.grad is not None}
    base.close()
    apart = {}
    for path, ours in gradients["diffusers"].items():
        place = path.removesuffix(".weight")
        if not path.endswith(".weight") or "_blocks" not in path or ".norm_" in path:
            continue
        there = flux.lora_place(place)
        theirs = gradients["comfyui"][f"{there.name}.weight"]
        unit = len(theirs) // there.total
        apart[path] = relative(theirs[there.start * unit : there.stop * unit], ours)
    fused = {path for path in apart if flux.lora_place(path.removesuffix(".weight")).total > 1}
    logging.getLogger(__name__).info(
        "gradients of %d weights, %d of them fused, differ by %.1e at most", len(apart), len(fused), max(apart.values())
    )
    assert len(fused) > 8
    assert max(apart.values()) < 1e-5
    assert {name: one for name, (one, _) in before.items()} == {name: one for name, (one, _) in states(model).items()}


def stock(model: Any, lora: dict[str, Any] | None, positive: Any, seed: int, **settings: Any) -> Any:
    """Latents as Load LoRA and KSampler give them."""
    import comfy.sample
    import comfy.sd

    if lora is not None:
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
    with torch.inference_mode():
        latent = torch.zeros(1, *SHAPE)
        noise = comfy.sample.prepare_noise(latent, seed)
        found = comfy.sample.sample(
            *(model, noise, settings["steps"], settings["cfg"]),
            *(settings.get("sampler", "euler"), settings.get("scheduler", "simple"), *positive, latent),
            disable_pbar=True,
            seed=seed,
        )
    return found.clone()


def test_previews_are_what_the_stock_graph_draws(
    flux: Any, model: Any, hosted: Any, pictures: Path, tmp_path: Path
) -> None:
    """While training, and afterwards from the exported LoRA; and the MODEL itself is as it was."""
    conditioning, parsing = module("trainer_core.families.conditioning"), module("trainer_core.adapters.parsing")
    applied = module("trainer_core.adapters.applied").applied
    clip = Clip(flux)
    texts = [clip.encode_from_tokens_scheduled(one) for one in ("a red circle", "")]
    before, drawn = states(model), stock(model, None, texts, 7, steps=4, cfg=3.0)
    sample = {
        "prompts": ["a red circle"],
        "steps": 4,
        "guidance": 3.0,
        "width": 64,
        "height": 64,
        "seed": 7,
        "every": 6,
    }
    run = worked(trained(tmp_path, job(hosted, pictures, sample=sample)))
    assert torch.equal(stock(model, None, texts, 7, steps=4, cfg=3.0), drawn)
    lora = lora_of(run)
    after = stock(model, lora, texts, 7, steps=4, cfg=3.0)
    assert relative(after, drawn) > 1e-3
    for step, latents in ((0, drawn), (STEPS, after)):
        shown = Vae(flux, model.model.latent_format).decode(latents)[0]
        with Image.open(run.run.path / f"samples/step_{step:08}/00.png") as image:
            seen = torch.from_numpy(np.array(image)).float() / 255
        assert (seen - shown).abs().max() < 1.01 / 255
    base = module("nodes.comfy_models.base").ComfyBase.open(hosted)
    (own, negative) = (conditioning.Conditioning(one, base.encode_prompts([one])[0]) for one in ("a red circle", ""))
    settings = module("trainer_core.sampling.sampler").SamplerSettings(width=64, height=64, steps=4, guidance=3.0)
    denoiser = base.load_denoiser()
    with torch.no_grad():
        plain = base.own_sampler(lambda _: denoiser, [own], [7], settings, negative)["main"]
        changes = parsing.for_modules(parsing.parse(lora), denoiser, base)
        with applied(denoiser, changes, 1.0):
            found = base.own_sampler(lambda _: denoiser, [own], [7], settings, negative)["main"]
    base.close()
    process_in = model.model.latent_format.process_in
    assert torch.equal(plain, process_in(drawn))
    apart = relative(found - process_in(drawn), process_in(after) - process_in(drawn))
    logging.getLogger(__name__).info("previews differ by %.1e of what the LoRA changes", apart)
    assert apart < 1e-4
    now = states(model)
    assert all(torch.equal(value, now[name][1]) for name, (_, value) in before.items())


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("dpmpp_2m", "karras"),
        ("euler_ancestral", "beta"),
        ("dpmpp_sde", "ddim_uniform"),
        ("dpm_2", "sgm_uniform"),
        ("uni_pc", "linear_quadratic"),
        ("res_multistep", "kl_optimal"),
    ],
)
def test_any_sampler_and_scheduler(sampler: str, scheduler: str, flux: Any, model: Any, hosted: Any) -> None:
    """Bit for bit as KSampler, and ComfyUI's own random numbers go on as if nothing had been drawn."""
    conditioning = module("trainer_core.families.conditioning").Conditioning
    settings = module("trainer_core.sampling.sampler").SamplerSettings(
        width=64, height=64, steps=5, guidance=2.0, sampler=sampler, scheduler=scheduler
    )
    texts = [Clip(flux).encode_from_tokens_scheduled(one) for one in ("a red circle", "")]
    expected = stock(model, None, texts, 3, steps=5, cfg=2.0, sampler=sampler, scheduler=scheduler)
    base = module("nodes.comfy_models.base").ComfyBase.open(hosted)
    own, negative = (conditioning(one, base.encode_prompts([one])[0]) for one in ("a red circle", ""))
    denoiser, before = base.load_denoiser(), torch.random.get_rng_state()
    found = base.own_sampler(lambda _: denoiser, [own], [3], settings, negative)["main"]
    base.close()
    assert torch.equal(found, model.model.latent_format.process_in(expected))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("end", ["success", "failure", "cancel", "stop"])
def test_the_model_is_left_as_it_was(
    end: str, flux: Any, model: Any, hosted: Any, pictures: Path, tmp_path: Path
) -> None:
    """Whatever ends the run, in the middle of a step: values, tensors, hooks, wrappers, and ComfyUI's own state."""
    import comfy.model_management as management

    calls: list[int] = []

    def watch(out: Any, _options: Any) -> Any:
        calls.append(0)
        if len(calls) == 30 and end == "failure":
            raise RuntimeError("this node is broken")
        if len(calls) == 30 and end == "cancel":  # seen by an operation of ComfyUI's, in our thread
            management.interrupt_current_processing(True)
            management.throw_exception_if_processing_interrupted()
        return out

    def stop(run: Any) -> None:
        if end == "stop" and len(calls) > 30:
            run.stop()

    texts = [Clip(flux).encode_from_tokens_scheduled(one) for one in ("a red circle", "")]
    before, drawn = states(model), stock(model, None, texts, 7, steps=2, cfg=3.0)
    watched = model.clone()
    watched.set_model_attn1_output_patch(watch)
    base = linked(watched, clip=Clip(flux), vae=Vae(flux, model.model.latent_format))
    given = job(base, pictures)
    given["train"] |= {"gradient_checkpointing": True}
    wrappers, options = str(watched.wrappers), str(watched.model_options)
    run = trained(tmp_path, given, stop)
    state = {"success": "finished", "failure": "failed", "cancel": "stopped", "stop": "stopped"}[end]
    assert run.run.status()["state"] == state
    assert len(calls) >= 30
    assert management.processing_interrupted() == (end == "cancel")
    management.interrupt_current_processing(False)
    assert management.in_training is False
    assert (str(watched.wrappers), str(watched.model_options)) == (wrappers, options)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.model.modules())
    assert all(type(one).__name__ != "LoraLayer" for one in model.model.modules())
    assert model.model not in [one.model.model for one in management.current_loaded_models if one.model is not None]
    assert torch.equal(stock(model, None, texts, 7, steps=2, cfg=3.0), drawn)
    after = states(model)
    weights = [name for name in before if name.startswith("diffusion_model.")]
    assert all(before[name][0] == after[name][0] and torch.equal(before[name][1], after[name][1]) for name in weights)
