"""Models that edit are told of pictures as ComfyUI tells them: we expect what its own nodes make of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ..pack import module
from .editing import (
    BASES,
    MOST,
    NAMES,
    SIGHTED,
    ZOO,
    base_of,
    fills,
    images,
    made,
    parts_of,
    pixels,
    shown,
    stock,
    target,
)

pytestmark = [
    pytest.mark.host,
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor", "ignore:__array_wrap__ must accept"),
]


@pytest.fixture(scope="module", autouse=True)
def _bases() -> Iterator[None]:
    yield
    BASES.clear()


# --- what a base says of itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_how_many_control_images_and_who_sees_them(name: str) -> None:
    spec = base_of(name).spec
    assert (spec.category, spec.max_controls) == ("edit", MOST.get(name, 3))
    assert spec.text_sees_controls is (name in SIGHTED or name.startswith("qwen"))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "chroma", "anima", "wan21_i2v", "ltx2"])
def test_models_that_take_none(name: str) -> None:
    """Chroma's class reads references as FLUX's does, and its denoiser drops them; videos start with a frame."""
    assert (base_of(name).spec.max_controls, base_of(name).spec.text_sees_controls) == (0, False)


# --- the conditioning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["make it night", ""])
@pytest.mark.parametrize("name", NAMES)
def test_conditioning_is_that_of_comfyuis_node(name: str, prompt: str) -> None:
    """Text, reference latents, concatenated latents and masks; also of the blank prompt, which preservation needs."""
    pictures = shown(name, MOST.get(name, 3))
    base = base_of(name)
    (found,) = base.collate([made(name, prompt, pictures)], 2.5)
    cross, expected = stock(name, prompt, pictures)[0]
    expected = {"cross_attn": cross, **expected}
    if base.guidance_distilled:
        expected["guidance"] = 2.5
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_same(found[key], value)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-5)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("name", [*SIGHTED, "qwen_edit_2511"])
def test_without_control_images_a_prompt_is_encoded_plainly(name: str) -> None:
    """The same weights draw: what CLIPTextEncode gives."""
    from .stock_edit import text

    base = base_of(name)
    (found,) = base.encode_prompts(["a cat"])
    (same,) = base.encode_prompts(["a cat"], [()])
    assert all(torch.equal(found[key], same[key]) for key in found)
    conditioning = module("trainer_core.families.conditioning").Conditioning
    (options,) = base.collate([conditioning("a cat", found)])
    cross, _ = text(parts_of(name)[1], "a cat")[0]
    torch.testing.assert_close(options["cross_attn"], cross.to(options["cross_attn"].dtype))
    assert not {"reference_latents", "reference_latents_method", "reference_latents_text_embeds"} & options.keys()


def test_a_model_that_fills_needs_a_mask() -> None:
    errors = module("trainer_core.errors")
    with pytest.raises(errors.BaseModelError, match=r"two control images.*white"):
        base_of("flux1_fill").encode_controls(pixels(shown("flux1_fill", 2)[:1]), (128, 128))


def test_joyimages_sizes_are_comfyuis() -> None:
    from .stock_edit import extra

    assert module("nodes.comfy_models.edits").joy_sizes() == sorted(extra("nodes_joyimage").BUCKETS_1024)


# --- the real tokenizers ----------------------------------------------------------------------------------------------


def tokenizer_of(name: str) -> Any:
    from comfy.text_encoders import boogu, joyimage, krea2, longcat_image, mage_flow, qwen_image, z_image

    kinds = {
        "longcat": longcat_image.LongCatImageTokenizer,
        "qwen_edit_3": qwen_image.QwenImageTokenizer,
        "krea2_edit": krea2.Krea2Tokenizer,
        "boogu_edit": boogu.BooguTokenizer,
        "mage_flow_edit": mage_flow.MageFlowTokenizer,
        "joyimage_edit": joyimage.JoyImageTokenizer,
        "z_image_omni": z_image.ZImageTokenizer,
    }
    return kinds[name]()


class Asked:
    """A CLIP with a real tokenizer that keeps what it is asked to encode."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.tokens = tokenizer, []

    def tokenize(self, text: str, **options: Any) -> Any:
        return self._tokenizer.tokenize_with_weights(text, **options)

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        (batch,) = tokens.values()
        self.tokens.append([token for token, *_ in batch[0]])
        return [[torch.zeros(1, 1, 1), {}]]


@pytest.mark.parametrize("prompt", ["replace the dog by a cat", ""])
@pytest.mark.parametrize("name", SIGHTED)
def test_tokens_are_those_of_comfyuis_node(name: str, prompt: str) -> None:
    """Numbers and pictures among them, in the order in which the text encoder reads them."""
    from .stock_edit import STOCK

    pictures = shown(name, MOST.get(name, 3))
    ours, theirs = Asked(tokenizer_of(name)), Asked(tokenizer_of(name))
    module("nodes.comfy_models.controls").conditioning(ours, parts_of(name)[0].model, prompt, pixels(pictures))
    STOCK[name]()(theirs, None, prompt, images(pictures))
    encoded = theirs.tokens
    if name in ("boogu_edit", "mage_flow_edit"):  # their nodes encode both prompts
        encoded = encoded[:1] if prompt else encoded[1:]
    assert len(ours.tokens) == len(encoded)
    for found, expected in zip(ours.tokens, encoded, strict=True):
        seen = [token for token in found if isinstance(token, dict)]
        wanted = [token for token in expected if isinstance(token, dict)]
        assert [one if isinstance(one, int) else "picture" for one in found] == [
            one if isinstance(one, int) else "picture" for one in expected
        ]
        assert [one["type"] for one in seen] == [one["type"] for one in wanted]
        assert all(torch.equal(one["data"], other["data"]) for one, other in zip(seen, wanted, strict=True))
    if name not in ("z_image_omni",) and (prompt or name != "boogu_edit"):
        assert sum(isinstance(token, dict) for token in ours.tokens[0]) == len(pictures)


# --- previews ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_previews_are_what_the_stock_graph_draws(name: str) -> None:
    """The edit node and KSampler, with guidance: two steps, or one where the pictures are scaled to a megapixel."""
    import comfy.sample

    from .stock_edit import guided

    base, (patcher, _, _) = base_of(name), parts_of(name)
    pictures = shown(name, 1 if not fills(name) else 2)
    prompts = ["make it night", ""]
    guidance, seed, steps = 3.0, 7, 1 if base.spec.own_controls and not fills(name) else 2
    conds = [stock(name, prompt, pictures) for prompt in prompts]
    if base.guidance_distilled:
        conds = [guided(one, guidance) for one in conds]
    sampling = module("trainer_core.sampling.sampler")
    width, height = target(name)
    settings = sampling.SamplerSettings(width, height, steps, guidance, sampler="euler", scheduler="simple")
    denoiser = base.load_denoiser()
    shown_to, without = (made(name, prompt, pictures) for prompt in prompts)
    found = base.own_sampler(lambda _: denoiser, [shown_to], [seed], settings, without)["main"]
    with torch.inference_mode():
        latent = comfy.sample.fix_empty_latent_channels(patcher, torch.zeros(ZOO[name].latents[0]))
        noise = comfy.sample.prepare_noise(latent, seed)
        cfg = 1.0 if base.guidance_distilled else guidance
        positive, negative = conds
        expected = comfy.sample.sample(
            patcher, noise, steps, cfg, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=seed
        )
        expected = patcher.model.latent_format.process_in(expected.float())
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
