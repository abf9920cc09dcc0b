"""Previews against a plain Euler loop and against FluxPipeline itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor, nn

from trainer_core.adapters.applied import applied
from trainer_core.adapters.comfy_format import to_comfy
from trainer_core.adapters.deltas import LowRank
from trainer_core.adapters.parsing import for_modules, parse
from trainer_core.config import ModelConfig, SampleConfig
from trainer_core.errors import AdapterError, ConfigError, Interrupted
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN, Collated, Conditioning, Streams, each
from trainer_core.families.sources import source as sources
from trainer_core.families.texts import stack_text
from trainer_core.safetensors_file import serialize
from trainer_core.sampling.preview import preview
from trainer_core.sampling.sampler import SamplerSettings, draw

from ..predicting import predicted

MODEL = ModelConfig(source="embedded", device="cpu")
SETTINGS = SamplerSettings(width=64, height=48, steps=4, guidance=1.0)
SAMPLE = SampleConfig(width=64, height=48, steps=4, guidance=1.0, seed=11)


@pytest.fixture(scope="module")
def denoiser(base: Base) -> nn.Module:
    return base.load_denoiser()


@pytest.fixture(scope="module")
def prompts(base: Base) -> list[Conditioning]:
    """Two prompts, and the blank one."""
    texts = ["a red circle on a blue background", "a green star", ""]
    return list(map(Conditioning, texts, base.encode_prompts(texts)))


def drawn(base: Base, denoiser: nn.Module, prompts: list[Conditioning], *rest: Any, **given: Any) -> Tensor:
    """The main stream of what is drawn with one denoiser for all times."""
    return draw(base, lambda _: denoiser, prompts, *rest, **given)[MAIN]


def seeded(seed: int, *shape: int) -> Tensor:
    """What ComfyUI's prepare_noise draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.randn(shape)


def euler(base: Base, denoiser: nn.Module, x: Tensor, prompts: list[Conditioning], guidance: float) -> Tensor:
    """Euler steps with classifier-free guidance, each pass alone; shift 3 by hand."""
    times = [3 * s / (1 + 2 * s) for s in (1.0, 0.75, 0.5, 0.25, 0.0)]
    text, empty = (stack_text([one.text], base.device) for one in prompts if one.text)
    with torch.no_grad():
        for here, there in pairwise(times):
            t = torch.tensor([here])
            with_text, without = predicted(base, denoiser, x, t, text), predicted(base, denoiser, x, t, empty)
            x = x + (there - here) * (without + guidance * (with_text - without))
    return x


@pytest.mark.parametrize("guidance", [1.0, 3.5, 0.0])
def test_draw_is_euler_with_guidance(guidance: float, base: Base, denoiser: nn.Module, prompts: list) -> None:
    settings = SamplerSettings(64, 48, 4, guidance)
    assert settings.needs_negative(base) == (guidance != 1.0)
    ours = drawn(base, denoiser, prompts[:1], [11], settings, prompts[2])
    expected = euler(base, denoiser, seeded(11, 1, 16, 6, 8), [prompts[0], prompts[2]], guidance)
    assert ours.shape == (1, 16, 6, 8)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_noise_is_that_of_the_seed(base: Base, prompts: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, each picture of a batch with its own."""
    monkeypatch.setattr(base, "predict", lambda _, noisy, *__: each(torch.zeros_like, noisy))
    both = drawn(base, nn.Identity(), prompts[:2], [5, 2**63 - 1], SETTINGS)
    assert torch.equal(both[:1], seeded(5, 1, 16, 6, 8))
    assert torch.equal(both[1:], seeded(2**63 - 1, 1, 16, 6, 8))


def test_with_guidance_one_nothing_is_drawn_twice(base: Base, prompts: list, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def predict(denoiser: Any, noisy: Streams, t: Tensor, conditioning: Collated) -> Streams:
        calls.append(conditioning.guidance)
        return each(torch.zeros_like, noisy)

    monkeypatch.setattr(base, "predict", predict)
    drawn(base, nn.Identity(), prompts[:1], [1], SETTINGS, prompts[2])
    assert calls == [1.0] * 4
    drawn(base, nn.Identity(), prompts[:1], [1], SamplerSettings(64, 48, 4, 2.0), prompts[2])
    assert len(calls) == 12
    monkeypatch.setattr(base, "_distilled", True)  # a distilled model takes guidance as an input
    drawn(base, nn.Identity(), prompts[:1], [1], SamplerSettings(64, 48, 4, 3.5), prompts[2])
    assert calls[12:] == [3.5] * 4


def test_a_batch_is_its_pictures(base: Base, denoiser: nn.Module, prompts: list) -> None:
    together = drawn(base, denoiser, prompts[:2], [5, 6], SETTINGS)
    alone = [drawn(base, denoiser, [prompts[k]], [5 + k], SETTINGS) for k in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_are_those_of_flux_pipeline(guidance: float, base: Base, denoiser: nn.Module) -> None:
    """diffusers' own pipeline on the same folder, with its scheduler, its text encoding and its true guidance."""
    pipeline = FluxPipeline.from_pretrained(sources.EMBEDDED).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    latents = FluxPipeline._pack_latents(seeded(11, 1, 16, 8, 8), 1, 16, 8, 8)
    prompt = "a red circle on a blue background"
    (theirs,) = pipeline(
        prompt,
        negative_prompt="" if guidance > 1 else None,
        true_cfg_scale=guidance,
        height=64,
        width=64,
        num_inference_steps=6,
        latents=latents,
        max_sequence_length=16,
    ).images
    (ours,) = preview(MODEL, [prompt], sample=SampleConfig(width=64, height=64, steps=6, guidance=guidance, seed=11))
    difference = np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)
    assert abs(difference).max() <= 2


def test_stop_is_heard_between_steps(base: Base, denoiser: nn.Module, prompts: list) -> None:
    asked = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        drawn(base, denoiser, prompts[:1], [1], SETTINGS, on_step=stop)
    assert len(asked) == 3


def test_nothing_global_is_touched(base: Base, denoiser: nn.Module, prompts: list) -> None:
    before = torch.get_rng_state()
    drawn(base, denoiser, prompts[:1], [1], SETTINGS)
    preview(MODEL, ["a"], sample=SAMPLE)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_fall_back_to_the_bases_own(base: Base) -> None:
    assert SamplerSettings.of(SampleConfig(), base) == SamplerSettings(**vars(base.sampling))
    given = SampleConfig(width=128, height=32, steps=3, guidance=0.0)
    assert SamplerSettings.of(given, base) == SamplerSettings(128, 32, 3, 0.0)


@pytest.mark.parametrize("edge", ["width", "height"])
def test_sizes_that_do_not_fit_are_named(edge: str, base: Base) -> None:
    with pytest.raises(ConfigError, match=rf"sample\.{edge}.*16"):
        SamplerSettings.of(SampleConfig(**{edge: 72}), base)


# --- preview ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lora(base: Base, denoiser: nn.Module) -> dict[str, Tensor]:
    """A LoRA that changes pictures a lot, in ComfyUI's names."""
    source = torch.Generator().manual_seed(4)
    linears = {path: m for path, m in denoiser.named_modules() if isinstance(m, nn.Linear) and "blocks." in path}
    deltas = {
        path: LowRank(
            torch.randn(2, m.in_features, generator=source) * 0.1,
            torch.randn(m.out_features, 2, generator=source) * 0.1,
            0.5,
        )
        for path, m in linears.items()
    }
    return to_comfy(deltas, base, torch.float32)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_previews(base: Base, denoiser: nn.Module, prompts: list) -> None:
    steps: list[tuple[int, int]] = []
    told = [one.prompt for one in prompts[:2]]
    images = preview(MODEL, told, sample=SAMPLE, progress=lambda done, total: steps.append((done, total)))
    assert [image.size for image in images] == [(64, 48)] * 2
    assert {image.mode for image in images} == {"RGB"}
    assert list(dict.fromkeys(steps)) == [(0, 2), (1, 2), (2, 2)]
    walked = draw(base, lambda _: denoiser, prompts[:2], [11, 12], SETTINGS)
    expected = ((base.decode_latents(walked) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert abs(pixels(images) - expected).max() <= 1
    still = preview(MODEL, ["a green star"] * 2, sample=SAMPLE.but(walk_seed=False))
    assert (pixels(still[:1]) == pixels(still[1:])).all()


def test_a_lora_from_a_file_and_from_tensors(lora: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialize(lora, {}))
    plain = pixels(preview(MODEL, ["a"], sample=SAMPLE))
    from_file = pixels(preview(MODEL, ["a"], lora=path, sample=SAMPLE))
    from_tensors = pixels(preview(MODEL, ["a"], lora=lora, sample=SAMPLE))
    assert (from_file == from_tensors).all()
    assert abs(from_file - plain).max() > 3
    assert (pixels(preview(MODEL, ["a"], lora=path, strength=0.0, sample=SAMPLE)) == plain).all()


def test_strength_scales_the_difference(
    lora: dict[str, Tensor], base: Base, denoiser: nn.Module, prompts: list
) -> None:
    """Half the strength is half of alpha."""
    half = {key: value / 2 if key.endswith(".alpha") else value for key, value in lora.items()}

    def with_lora(tensors: dict[str, Tensor], strength: float) -> Tensor:
        with applied(denoiser, for_modules(parse(tensors), denoiser, base), strength):
            return drawn(base, denoiser, prompts[:1], [1], SETTINGS)

    torch.testing.assert_close(with_lora(lora, 0.5), with_lora(half, 1.0), rtol=1e-4, atol=1e-4)


def test_what_is_no_lora_of_this_base_is_told(lora: dict[str, Tensor], tmp_path: Path) -> None:
    foreign = {key.replace("double_blocks.0", "double_blocks.9"): value for key, value in lora.items()}
    with pytest.raises(AdapterError, match=r"double_blocks\.9"):
        preview(MODEL, ["a"], lora=foreign, sample=SAMPLE)
    with pytest.raises(AdapterError, match="nowhere"):
        preview(MODEL, ["a"], lora=tmp_path / "nowhere.safetensors", sample=SAMPLE)
    with pytest.raises(AdapterError):
        preview(MODEL, ["a"], lora={}, sample=SAMPLE)


def test_previews_stop_when_asked() -> None:
    """Before any step of any picture, by what hears of progress."""
    heard: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        heard.append((done, total))
        if len(heard) == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        preview(MODEL, ["a", "b"], sample=SAMPLE, progress=stop)
    assert len(heard) == 6
