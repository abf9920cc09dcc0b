"""FLUX.1 against diffusers and transformers, called as FluxPipeline calls them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from trainer_core.config import ModelConfig
from trainer_core.errors import AdapterError, BaseModelError
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN
from trainer_core.families.flux1.model import Flux, pack, position_ids, unpack
from trainer_core.families.registry import open_base
from trainer_core.families.sources import source as sources
from trainer_core.families.sources.source import Source
from trainer_core.families.texts import stack_text

from ..predicting import predicted

SHAPES = [(2, 16, 8, 8), (1, 16, 4, 12), (3, 4, 6, 2)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def denoiser(base: Base) -> nn.Module:
    return base.load_denoiser()


@pytest.mark.parametrize("shape", SHAPES)
def test_pack_and_unpack_are_those_of_flux_pipeline(shape: tuple[int, int, int, int]) -> None:
    n, c, h, w = shape
    x = noise(*shape)
    packed = FluxPipeline._pack_latents(x, n, c, h, w)
    assert torch.equal(pack(x), packed)
    assert torch.equal(unpack(packed, h, w), x)
    assert torch.equal(FluxPipeline._unpack_latents(packed, h * 8, w * 8, 8), x)


def test_positions_are_those_of_flux_pipeline() -> None:
    theirs = FluxPipeline._prepare_latent_image_ids(1, 4, 6, torch.device("cpu"), torch.float32)
    assert torch.equal(position_ids(4, 6, torch.device("cpu")), theirs)


def test_tokens_are_the_packed_length(base: Base) -> None:
    for _, _, h, w in SHAPES:
        assert base.tokens((16, h, w)) == pack(noise(1, 16, h, w)).shape[1]


def tiny(guidance: bool) -> FluxTransformer2DModel:
    """A transformer of two blocks, its start drawn without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=1,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            guidance_embeds=guidance,
        ).eval()


def as_pipeline(model: nn.Module, x: Tensor, t: Tensor, text: dict[str, Tensor], guidance: float | None) -> Tensor:
    """One call of the transformer in FluxPipeline.__call__ (diffusers 0.35 to 0.42): timestep / 1000, packed."""
    n, c, h, w = x.shape
    timestep = t * 1000  # what the scheduler's list holds
    with torch.no_grad():
        packed = model(
            hidden_states=FluxPipeline._pack_latents(x, n, c, h, w),
            timestep=timestep / 1000,
            guidance=None if guidance is None else torch.full([1], guidance, dtype=torch.float32).expand(n),
            pooled_projections=text["pooled"],
            encoder_hidden_states=text["text"],
            txt_ids=torch.zeros(text["text"].shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(n, h // 2, w // 2, torch.device("cpu"), torch.float32),
            return_dict=False,
        )[0]
    return FluxPipeline._unpack_latents(packed, h * 8, w * 8, 8)


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 16, 4, 12)])
def test_predict_is_the_transformer_as_the_pipeline_calls_it(
    shape: tuple[int, int, int, int], base: Base, denoiser: nn.Module
) -> None:
    x, t = noise(*shape), torch.tensor([0.9, 0.25])[: shape[0]]
    text = stack_text(base.encode_prompts(["a red circle", "a green star"][: shape[0]]), base.device)
    with torch.no_grad():
        ours = predicted(base, denoiser, x, t, text)
    assert ours.shape == x.shape
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, as_pipeline(denoiser, x, t, text, None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("given", "used"), [(3.5, 3.5), (None, 1.0)])
def test_guidance_of_a_distilled_model(given: float | None, used: float, base: Base) -> None:
    model, distilled = tiny(guidance=True), open_base(base.config)
    distilled._distilled = True  # type: ignore[attr-defined]
    assert distilled.guidance_distilled
    x, t, text = noise(2, 16, 4, 4), torch.tensor([0.5, 0.7]), {"text": noise(2, 16, 64), "pooled": noise(2, 64)}
    with torch.no_grad():
        ours = predicted(distilled, model, x, t, text, given)
    torch.testing.assert_close(ours, as_pipeline(model, x, t, text, used), rtol=1e-6, atol=1e-6)


def test_samples_of_a_batch_do_not_see_each_other(base: Base, denoiser: nn.Module) -> None:
    x, t = noise(3, 16, 8, 8), torch.tensor([0.2, 0.5, 0.9])
    texts = base.encode_prompts(["a", "a red circle", "zorble"])
    with torch.no_grad():
        together = predicted(base, denoiser, x, t, stack_text(texts, base.device))
        for k in range(3):
            alone = predicted(base, denoiser, x[k : k + 1], t[k : k + 1], stack_text(texts[k : k + 1], base.device))
            torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-4, atol=1e-5)


# --- text ------------------------------------------------------------------------------------------------------------

PROMPTS = ["a red circle on a white background", "", "zorble " * 40]


def test_prompts_are_encoded_as_transformers_does(base: Base) -> None:
    """CLIP's pooled output and T5's hidden states, padded to the tokenizer's length and cut, without a mask."""
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    folder = sources.EMBEDDED
    clip_tokenizer, t5_tokenizer = (AutoTokenizer.from_pretrained(folder / f"tokenizer{k}") for k in ("", "_2"))
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2").float().eval()
    for prompt, ours in zip(PROMPTS, base.encode_prompts(PROMPTS), strict=True):
        with torch.no_grad():
            ids = clip_tokenizer(prompt, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
            pooled = clip(ids.input_ids, output_hidden_states=False).pooler_output[0]
            ids = t5_tokenizer(prompt, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
            text = t5(ids.input_ids, output_hidden_states=False)[0][0]
        assert (ours["text"].shape, ours["pooled"].shape) == ((16, 64), (64,))
        torch.testing.assert_close(ours["text"], text, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours["pooled"], pooled, rtol=1e-5, atol=1e-5)


def test_prompts_are_encoded_as_flux_pipeline_does(base: Base) -> None:
    pipeline = FluxPipeline.from_pretrained(sources.EMBEDDED, transformer=None, vae=None).to(torch.float32)
    for prompt, ours in zip(PROMPTS, base.encode_prompts(PROMPTS), strict=True):
        text, pooled, _ = pipeline.encode_prompt(prompt, None, max_sequence_length=16)
        torch.testing.assert_close(ours["text"], text[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours["pooled"], pooled[0], rtol=1e-5, atol=1e-5)


def test_an_invented_word_is_a_sequence_of_its_own(base: Base) -> None:
    one, other, none = base.encode_prompts(["a red zorble", "a red snark", "a red"])
    assert (one["text"] - other["text"]).abs().max() > 1e-3
    assert (one["text"] - none["text"]).abs().max() > 1e-3


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_latents_are_shifted_and_scaled_as_the_pipeline_does(base: Base) -> None:
    vae = AutoencoderKL.from_pretrained(sources.EMBEDDED / "vae").float().eval()
    pixels = noise(2, 3, 64, 48).clamp(-1, 1)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    mean, std = (streams[MAIN] for streams in base.encode_pixels(pixels))
    assert (mean.shape, std.shape, mean.dtype) == ((2, 16, 8, 6), (2, 16, 8, 6), torch.float32)
    torch.testing.assert_close(mean, (posterior.mean - 0.1159) * 0.3611, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, posterior.std * 0.3611, rtol=1e-5, atol=1e-5)
    # a draw: (sample - shift) · scale, as the training scripts of diffusers do
    draw = noise(2, 16, 8, 6, seed=1)
    sample = posterior.mean + posterior.std * draw
    torch.testing.assert_close(mean + std * draw, (sample - 0.1159) * 0.3611, rtol=1e-4, atol=1e-5)


def test_decoding_is_that_of_the_pipeline(base: Base) -> None:
    vae = AutoencoderKL.from_pretrained(sources.EMBEDDED / "vae").float().eval()
    latents = noise(2, 16, 8, 6)
    with torch.no_grad():
        image = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
    expected = VaeImageProcessor().postprocess(image, output_type="pt") * 2 - 1
    torch.testing.assert_close(base.decode_latents({MAIN: latents}), expected, rtol=1e-4, atol=1e-4)


def test_a_picture_survives_the_vae(base: Base) -> None:
    from trainer_core.data.images import load_image, to_bucket

    folder = sources.EMBEDDED.parent / "demo_dataset"
    pixels = torch.stack([to_bucket(load_image(folder / f"0{k}.png"), (64, 64)) for k in range(4)])
    back = base.decode_latents(base.encode_pixels(pixels)[0])
    assert (back - pixels).abs().mean() < 0.1


def test_a_vae_without_shift() -> None:
    """Its config says null, or nothing."""

    class Configured(Source):
        def config(self, component: str, file: str = "config.json") -> dict[str, Any]:
            return {"shift_factor": None, "scaling_factor": 0.5} if component == "vae" else {}

    opened = Flux(Configured("x", Path(), {}), ModelConfig(device="cpu"))
    assert (opened._shift, opened._scale, opened.guidance_distilled) == (0.0, 0.5, False)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_parts_are_loaded_alone_and_freed() -> None:
    opened = open_base(ModelConfig(device="cpu"))
    assert isinstance(opened, Flux)
    assert (opened._encoders, opened._vae) == (None, None)
    opened.load_vae()
    opened.load_vae()
    assert opened._encoders is None
    opened.free_vae()
    assert opened._vae is None
    opened.free_text_encoders()


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_denoiser_is_frozen_fresh_and_of_its_dtype(dtype: str, expected: torch.dtype) -> None:
    opened = open_base(ModelConfig(device="cpu", dtype=dtype))
    one, other = opened.load_denoiser(), opened.load_denoiser()
    assert {parameter.dtype for parameter in one.parameters()} == {expected}
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert not one.training
    first, second = next(one.parameters()), next(other.parameters())
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)


FINGERPRINTS: dict[str, Callable[[Base], str]] = {
    "text": lambda base: base.text_fingerprint(),
    "pixels": lambda base: base.pixel_fingerprint(),
}


def test_fingerprints_follow_precision() -> None:
    plain, short = (
        open_base(ModelConfig(device="cpu", vae_dtype=d, text_encoder_dtype=d)) for d in ("auto", "bfloat16")
    )
    for fingerprint in FINGERPRINTS.values():
        assert fingerprint(plain) == fingerprint(open_base(ModelConfig(device="cpu"))) != fingerprint(short)


def test_unknown_layers_are_named(base: Base) -> None:
    for path in ("transformer_blocks.0.attn.to_q.base_layer", "nothing", "", "transformer_blocks.x.attn.to_q"):
        with pytest.raises(AdapterError):
            base.lora_place(path)


def test_what_comfyui_loads_is_one_file(base: Base) -> None:
    from safetensors import safe_open

    with safe_open(base.denoiser_file, "pt") as file:
        assert "transformer_blocks.0.attn.to_q.weight" in set(file.keys())


@pytest.fixture
def other_base(tmp_path: Path) -> Callable[..., Path]:
    """A base whose transformer is another one."""

    def make(guidance: bool, **save: Any) -> Path:
        folder = tmp_path / "other base"
        shutil.copytree(sources.EMBEDDED, folder, ignore=shutil.ignore_patterns("transformer"))
        tiny(guidance).save_pretrained(folder / "transformer", **save)
        return folder

    return make


def test_a_distilled_base_trains_and_draws(other_base: Callable[..., Path], job_of: Any, train: Any) -> None:
    job = job_of(
        model={"source": str(other_base(guidance=True))}, sample={"prompts": ("a [trigger]",), "guidance": 3.5}
    )
    assert train(job).outcome == "finished"


def test_a_transformer_in_several_files_trains_but_is_no_file_for_comfyui(
    other_base: Callable[..., Path], job_of: Any, train: Any
) -> None:
    folder = other_base(guidance=False, max_shard_size="1MB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert train(job_of(model={"source": str(folder)})).outcome == "finished"
    with pytest.raises(BaseModelError, match="split"):
        _ = open_base(ModelConfig(source=str(folder), device="cpu")).denoiser_file
