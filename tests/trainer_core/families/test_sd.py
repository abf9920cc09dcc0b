"""Stable Diffusion 1.5 and XL against diffusers' own pipelines, with small models of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from trainer_core.config import AdapterConfig, ModelConfig, SampleConfig
from trainer_core.errors import AdapterError, BaseModelError, ConfigError
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN, Conditioning
from trainer_core.families.registry import family_spec, open_base
from trainer_core.families.texts import stack_text
from trainer_core.sampling.sampler import SamplerSettings, draw

from ..predicting import predicted
from .small_models import SMALL

NAMES = ("sd15", "sdxl")
PROMPTS = ["a red fox on grass", "", "zorble! " * 40]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: SMALL[name](root / name) for name in NAMES}


@pytest.fixture(scope="module")
def bases(folders: dict[str, Path]) -> dict[str, Base]:
    """With text encoders and VAE loaded."""
    opened = {
        name: open_base(ModelConfig(family=name, source=str(folder), device="cpu")) for name, folder in folders.items()
    }
    for base in opened.values():
        base.load_text_encoders()
        base.load_vae()
    return opened


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, DiffusionPipeline]:
    """diffusers' pipelines of the same parts, with DDIM spaced as previews are."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    made = {}
    for name, folder in folders.items():
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", timestep_spacing="trailing")
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
            "vae": AutoencoderKL.from_pretrained(folder / "vae"),
            "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            "scheduler": scheduler,
        }
        if name == "sdxl":
            parts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
            parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
            made[name] = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            made[name] = StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        made[name].set_progress_bar_config(disable=True)
    return made


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- text ------------------------------------------------------------------------------------------------------------


def test_sd15_reads_prompts_as_its_pipeline_does(bases: dict[str, Base], pipelines: dict[str, Any]) -> None:
    for prompt, ours in zip(PROMPTS, bases["sd15"].encode_prompts(PROMPTS), strict=True):
        with torch.no_grad():
            expected, _ = pipelines["sd15"].encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        assert ours.keys() == {"text"}
        assert ours["text"].shape == (77, 32)
        torch.testing.assert_close(ours["text"], expected[0], **CLOSE)


def test_sdxl_reads_prompts_as_its_pipeline_does(bases: dict[str, Base], pipelines: dict[str, Any]) -> None:
    for prompt, ours in zip(PROMPTS, bases["sdxl"].encode_prompts(PROMPTS), strict=True):
        with torch.no_grad():
            text, _, pooled, _ = pipelines["sdxl"].encode_prompt(prompt, None, "cpu", 1, False)
        assert (ours["text"].shape, ours["pooled"].shape) == ((77, 96), (64,))
        torch.testing.assert_close(ours["text"], text[0], **CLOSE)
        torch.testing.assert_close(ours["pooled"], pooled[0], **CLOSE)


def test_clip_g_pads_with_0_whatever_its_tokenizer_says(folders: dict[str, Path], tmp_path: Path) -> None:
    """A host has one CLIP tokenizer for both, and that repeats the end."""
    import shutil

    folder = tmp_path / "sdxl"
    shutil.copytree(folders["sdxl"], folder)
    shutil.rmtree(folder / "tokenizer_2")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    of_one, of_two = (
        open_base(ModelConfig(family="sdxl", source=str(f), device="cpu")) for f in (folder, folders["sdxl"])
    )
    for base in (of_one, of_two):
        base.load_text_encoders()
    one, two = (base.encode_prompts(["a red fox"])[0] for base in (of_one, of_two))
    assert torch.equal(one["text"], two["text"])


@pytest.mark.parametrize("name", NAMES)
def test_embedding_keeps_its_graph_for_training(name: str, bases: dict[str, Base]) -> None:
    base = bases[name]
    encoders = base.text_encoders()
    assert encoders.keys() == family_spec(name).lora.text_encoders.keys()
    first = [next(p for path, p in e.named_parameters() if path.endswith("q_proj.weight")) for e in encoders.values()]
    for weight in first:
        weight.requires_grad_(True)
    try:
        batch = base.embed(PROMPTS[:2])
        sum(values.sum() for values in batch.values()).backward()
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in first)
        assert not any(values.requires_grad for values in base.encode_prompts(["a"])[0].values())
        for values, (name_, alone) in zip(
            batch.values(), stack_text(base.encode_prompts(PROMPTS[:2]), base.device).items(), strict=True
        ):
            torch.testing.assert_close(values.detach(), alone, msg=name_)
    finally:
        for weight in first:
            weight.requires_grad_(False).grad = None


# --- the UNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_predict_is_the_unet_as_the_pipeline_calls_it(name: str, bases: dict[str, Base], pipelines: Any) -> None:
    base, pipeline = bases[name], pipelines[name]
    denoiser = base.load_denoiser()
    x, t = noise(2, 4, 8, 16), torch.tensor([0.9995, 0.25])
    steps = torch.tensor([999, 250])
    text = stack_text(base.encode_prompts(PROMPTS[:2]), base.device)
    extra = None
    if name == "sdxl":
        whole = pipeline._get_add_time_ids((64, 128), (0, 0), (64, 128), torch.float32, text_encoder_projection_dim=64)
        extra = {"text_embeds": text["pooled"], "time_ids": whole.repeat(2, 1)}
    with torch.no_grad():
        expected = pipeline.unet(x, steps, encoder_hidden_states=text["text"], added_cond_kwargs=extra).sample
        ours = predicted(base, denoiser, x, t, text)
    assert (ours.shape, ours.dtype) == (x.shape, torch.float32)
    torch.testing.assert_close(ours, expected, **CLOSE)


def test_sdxl_is_told_sizes_and_crops_in_the_pipelines_order(bases: dict[str, Base], pipelines: Any) -> None:
    base, pipeline = bases["sdxl"], pipelines["sdxl"]
    denoiser, x, t = base.load_denoiser(), noise(1, 4, 8, 8), torch.tensor([0.5])
    text = stack_text(base.encode_prompts(PROMPTS[:1]), base.device)
    ids = pipeline._get_add_time_ids((700, 1300), (12, 345), (64, 128), torch.float32, text_encoder_projection_dim=64)
    sizes = torch.tensor([[700, 1300, 12, 345, 64, 128]])
    with torch.no_grad():
        extra = {"text_embeds": text["pooled"], "time_ids": ids}
        expected = pipeline.unet(x, 500, encoder_hidden_states=text["text"], added_cond_kwargs=extra).sample
        ours, whole = predicted(base, denoiser, x, t, text, time_ids=sizes), predicted(base, denoiser, x, t, text)
    torch.testing.assert_close(ours, expected, **CLOSE)
    assert (ours - whole).abs().max() > 1e-3


def test_sizes_are_exact_in_low_precision(folders: dict[str, Path]) -> None:
    """bfloat16 would make 1023 of 1024 and the like; the UNet must read sines of the number itself."""
    base = open_base(ModelConfig(family="sdxl", source=str(folders["sdxl"]), device="cpu", dtype="bfloat16"))
    denoiser = base.load_denoiser()
    given: list[Tensor] = []
    denoiser.add_time_proj.register_forward_hook(lambda _module, inputs, _output: given.append(inputs[0]))
    text = {"text": noise(1, 77, 96), "pooled": noise(1, 64)}
    sizes = torch.tensor([[1023, 1537, 3, 259, 1021, 1535]], dtype=torch.float32)
    with torch.no_grad():
        predicted(base, denoiser, noise(1, 4, 8, 8), torch.tensor([0.5]), text, time_ids=sizes)
    assert given[0].tolist() == sizes[0].tolist()


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_previews_are_what_the_pipeline_draws_with_ddim(
    name: str, guidance: float, bases: dict[str, Base], pipelines: Any
) -> None:
    """The whole way from prompt to pixels, with the same noise; both draw 64x64 whole."""
    base, pipeline = bases[name], pipelines[name]
    settings = SamplerSettings(width=64, height=64, steps=5, guidance=guidance)
    prompts = ["a red fox", ""]
    shown, negative = map(Conditioning, prompts, base.encode_prompts(prompts))
    denoiser = base.load_denoiser()
    latents = draw(base, lambda _: denoiser, [shown], [7], settings, negative)[MAIN]
    drawn = pipeline(
        "a red fox",
        negative_prompt="",
        width=64,
        height=64,
        num_inference_steps=5,
        guidance_scale=guidance,
        latents=noise(1, 4, 8, 8, seed=7),
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, drawn, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_scaled_as_the_pipeline_does(name: str, bases: dict[str, Base], pipelines: Any) -> None:
    vae, pixels = pipelines[name].vae, noise(2, 3, 64, 48).clamp(-1, 1)
    scale = {"sd15": 0.18215, "sdxl": 0.13025}[name]
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        mean, std = (streams[MAIN] for streams in bases[name].encode_pixels(pixels))
        decoded = vae.decode(noise(1, 4, 8, 8) / scale).sample.clamp(-1, 1)
    torch.testing.assert_close(mean, posterior.mean * scale, **CLOSE)
    torch.testing.assert_close(std, posterior.std * scale, **CLOSE)
    ours = bases[name].decode_latents({MAIN: noise(1, 4, 8, 8)})
    torch.testing.assert_close(ours, decoded, rtol=1e-4, atol=1e-4)


def test_a_v_prediction_checkpoint_of_zero_terminal_snr(tmp_path: Path) -> None:
    """Its scheduler's configuration says so, and the job's schedule follows."""
    folder = SMALL["sd15"](tmp_path / "v", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    schedule = open_base(ModelConfig(family="sd15", source=str(folder), device="cpu")).schedule
    assert schedule.prediction == "v_prediction"
    assert schedule.snr(torch.tensor([1.0])) == 0


# --- what it refuses, and its names ----------------------------------------------------------------------------------


def test_models_for_inpainting_are_refused(tmp_path: Path) -> None:
    import json

    folder = SMALL["sd15"](tmp_path / "inpainting")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    with pytest.raises(BaseModelError, match="inpainting"):
        open_base(ModelConfig(family="sd15", source=str(folder), device="cpu"))


def test_preview_sizes_must_be_multiples_of_64(bases: dict[str, Base]) -> None:
    with pytest.raises(ConfigError, match="multiple of 64"):
        SamplerSettings.of(SampleConfig(width=520), bases["sd15"])


@pytest.mark.parametrize("name", NAMES)
def test_targets_cover_attention_feed_forward_and_convolutions(name: str, bases: dict[str, Base]) -> None:
    import re

    base, spec = bases[name], family_spec(name)
    modules = {p: m for p, m in base.load_denoiser().named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}

    def hit(patterns: tuple[str, ...]) -> set[str]:
        return {path for path in modules if any(re.fullmatch(pattern, path) for pattern in patterns)}

    attention, linear, everything = (hit(spec.targets[k]) for k in ("attention", "attention_mlp", "all"))
    assert attention == {path for path in modules if ".attn1." in path or ".attn2." in path}
    assert linear - attention == {p for p in modules if ".ff.net." in p or p.endswith((".proj_in", ".proj_out"))}
    assert everything - linear == {path for path in modules if path.endswith("time_emb_proj")}
    convolutions = hit(spec.conv_targets)
    assert not convolutions & everything
    outside = {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    outside |= {"add_embedding.linear_1", "add_embedding.linear_2"} if name == "sdxl" else set()
    assert set(modules) - convolutions - everything == outside
    for path in convolutions | everything:
        assert base.lora_place(path).name == path
    for path in (*outside, "mid_block", "nothing", ""):
        with pytest.raises(AdapterError):
            base.lora_place(path)
    for encoder in base.text_encoders().values():
        layers = {path for path, module in encoder.named_modules() if isinstance(module, nn.Linear)}
        found = {path for path in layers if any(re.fullmatch(pattern, path) for pattern in spec.text_targets)}
        assert layers - found <= {"text_projection"}


def test_names_in_lora_files() -> None:
    """As kohya's scripts write them for SD 1.5 and SDXL, and ComfyUI's own for FLUX.1."""
    sd, xl, flux = (family_spec(name).lora for name in ("sd15", "sdxl", "flux1"))
    unet = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
    assert sd.key(unet) == xl.key(unet) == "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
    layer = "encoder.layers.0.self_attn.q_proj"
    assert sd.key(layer, "text_encoder") == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert xl.key(layer, "text_encoder") == "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    named = f"text_model.{layer}"
    assert xl.key(named, "text_encoder_2") == "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    assert flux.key("double_blocks.0.img_attn.qkv") == "diffusion_model.double_blocks.0.img_attn.qkv"


def test_what_a_family_cannot_adapt_is_refused() -> None:
    for settings in ({"conv_rank": 4}, {"text_encoders": True}):
        with pytest.raises(ConfigError, match=rf"adapter\.{next(iter(settings))}"):
            family_spec("flux1").check_adapter(AdapterConfig(**settings))
        family_spec("sdxl").check_adapter(AdapterConfig(**settings))
