"""The zoo's CLIP and VAE objects behave as ComfyUI's, which they are."""

from __future__ import annotations

from typing import Any

import pytest

from .running import predict
from .zoo import MODELS
from .zoo.record import Draw


def _encoded(clip: Any, prompt: str, **options: Any) -> list[Any]:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt, **options))


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.refused])
def test_a_model_takes_what_its_encoder_gives(name: str) -> None:
    import torch

    from .zoo.encoders import clip

    model = MODELS[name]
    encoder = clip(model)
    short, same, long = (_encoded(encoder, prompt) for prompt in ("a cat", "a cat", "a dog on a red sofa"))
    [[text, options]], [[again, _]], [[other, _]] = short, same, long
    assert torch.equal(text, again)
    assert text.shape != other.shape or not torch.equal(text, other)
    nodes = model.given(Draw(3))
    with torch.inference_mode():
        said = predict(model.make().model, model.streams(), [[text, options | nodes]])
    assert all(one.isfinite().all() for one in said)


def test_what_pads_and_what_does_not() -> None:
    from .zoo.encoders import clip

    lengths = {
        name: [_encoded(clip(MODELS[name]), prompt)[0][0].shape[1] for prompt in ("a cat", "a dog on a red sofa")]
        for name in ("sdxl", "wan21_t2v", "qwen_image", "lumina2")
    }
    assert lengths == {"sdxl": [7, 7], "wan21_t2v": [7, 7], "qwen_image": [6, 10], "lumina2": [6, 10]}


def test_the_encoder_sees_pictures() -> None:
    import torch

    from .zoo.encoders import clip

    encoder = clip(MODELS["qwen_edit"])
    plain, black, white = (
        _encoded(encoder, "make it blue", images=images)[0][0]
        for images in ([], [torch.zeros(1, 8, 8, 3)], [torch.ones(1, 8, 8, 3)])
    )
    assert plain.shape == (1, 7, 64)
    assert black.shape == white.shape == (1, 11, 64)
    assert not torch.equal(black, white)


@pytest.mark.parametrize(
    ("name", "pixels", "latents"),
    [
        ("sd15", (2, 64, 48, 3), (2, 4, 8, 6)),
        ("flux2", (1, 64, 48, 3), (1, 128, 4, 3)),
        ("pixeldit", (1, 32, 32, 3), (1, 3, 32, 32)),
        ("qwen_image", (1, 64, 48, 3), (1, 16, 1, 8, 6)),
        ("wan21_t2v", (9, 64, 48, 3), (1, 16, 3, 8, 6)),
        ("wan22_5b", (9, 64, 48, 3), (1, 48, 3, 4, 3)),
        ("ltxv", (17, 64, 96, 3), (1, 128, 3, 2, 3)),
    ],
)
def test_pixels_become_latents_and_come_back(name: str, pixels: tuple[int, ...], latents: tuple[int, ...]) -> None:
    """The factors are the published models'; a picture of one colour comes back as it was."""
    import torch

    from .zoo.encoders import vae

    encoder = vae(MODELS[name])
    flat = torch.tensor([0.2, 0.5, 0.9]).expand(*pixels)
    found = encoder.encode(flat)
    assert found.shape == latents
    assert torch.allclose(encoder.decode(found).reshape(pixels), flat, atol=1e-5)
    noise = encoder.encode(torch.rand(pixels, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(noise, found, atol=1e-2)


def test_sound_becomes_latents_and_comes_back() -> None:
    import torch

    from .zoo.encoders import sound_vae

    encoder = sound_vae(MODELS["ltx2"])
    steps = torch.arange(44100 * 2) // 4410 / 20
    sound = torch.stack([steps, -steps])[None]
    found = encoder.encode(sound.movedim(1, -1))
    assert found.shape == (1, 8, 50, 16)
    back = encoder.decode(found).movedim(-1, 1)
    assert back.shape == sound.shape
    assert (back - sound).abs().mean() < 1e-3
