"""LTX-2's sound: its latents are those of ComfyUI's nodes, and both streams are drawn and trained as ComfyUI does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..pack import module
from .hosted import training
from .zoo import MODELS

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore:To copy construct from a tensor")]
SIZE, FRAMES, RATE = (64, 64), 9, 25.0


@pytest.fixture(scope="module")
def base() -> Any:
    from .zoo import encoders

    model = MODELS["ltx2"]
    parts = (model.make(),), encoders.clip(model), encoders.vae(model), encoders.sound_vae(model)
    linked = module("nodes.comfy_models.loading").Linked(*parts)
    return module("nodes.comfy_models.base").ComfyBase(linked, module("trainer_core.config").ModelConfig(device="cpu"))


def wave(seconds: float) -> Any:
    return torch.rand(2, round(44100 * seconds), generator=torch.Generator().manual_seed(1)) * 2 - 1


def empty(base: Any, frames: int, known: Any = None) -> Any:
    """What a graph gives KSampler: two streams, the video's perhaps with a first frame."""
    from .stock_edit import extra

    lt = extra("nodes_lt")
    if known is None:
        video = lt.EmptyLTXVLatentVideo.execute(*SIZE, frames).result[0]
    else:
        video = lt.LTXVImgToVideo.execute([], [], known, base._linked.vae, *SIZE, frames, 1, 1.0).result[2]
    sound = extra("nodes_lt_audio").LTXVEmptyLatentAudio.execute(frames, RATE, 1, base._linked.audio_vae)
    return lt.LTXVConcatAVLatent.execute(video, sound.result[0]).result[0]


@pytest.mark.parametrize("frames", [1, 9, 33])
def test_shapes_are_those_of_comfyuis_empty_latents(base: Any, frames: int) -> None:
    video, sound = empty(base, frames)["samples"].unbind()
    found = base.latent_shapes(*SIZE, frames)
    assert found == {"main": tuple(video.shape[1:]), "audio": tuple(sound.shape[1:])}
    assert [one.name for one in base.spec.streams] == ["main", "audio"]
    assert base.spec.sample_rate == 44100


@pytest.mark.parametrize("frames", [1, 9, 33])
def test_sound_is_encoded_as_by_comfyuis_node(base: Any, frames: int) -> None:
    from .stock_edit import extra

    sound = wave(frames / RATE)
    audio = {"waveform": sound[None], "sample_rate": 44100}
    expected = extra("nodes_lt_audio").LTXVAudioVAEEncode.execute(audio, base._linked.audio_vae).result[0]["samples"]
    mean, std = base.encode_pixels(torch.zeros(1, 3, frames, *SIZE), sound[None])
    assert tuple(mean["audio"].shape[1:]) == base.latent_shapes(*SIZE, frames)["audio"]
    torch.testing.assert_close(mean["audio"], expected)
    assert not std["audio"].any()


@pytest.mark.parametrize("goes_on", [False, True])
def test_both_streams_are_drawn_and_trained_as_by_ksampler(base: Any, goes_on: bool) -> None:
    import comfy.nested_tensor
    import comfy.sample

    from .stock_edit import extra, text

    patcher = base._linked.models[0]
    image = torch.rand(1, SIZE[1], SIZE[0], 3, generator=torch.Generator().manual_seed(2))
    latent = empty(base, FRAMES, image if goes_on else None)
    positive = extra("nodes_lt").LTXVConditioning.execute(text(base._linked.clip, "a cat"), [], RATE).result[0]
    noise = comfy.sample.prepare_noise(latent["samples"], 7)
    seen: list[Any] = []

    def keep(_module: Any, args: Any, more: Any) -> None:
        seen.append((args[:2], {key: more.get(key) for key in ("context", "frame_rate")}))

    hook = patcher.model.diffusion_model.register_forward_pre_hook(keep, with_kwargs=True)
    given = {"noise_mask": latent.get("noise_mask"), "seed": 7, "disable_pbar": True}
    with torch.inference_mode():
        expected = comfy.sample.sample(
            patcher, noise, 2, 1.0, "euler", "simple", positive, positive, latent["samples"], **given
        )
    hook.remove()

    conditioning = module("trainer_core.families.conditioning").Conditioning
    pixels = (image.movedim(-1, 1)[:, :, None] * 2 - 1).expand(-1, -1, FRAMES, -1, -1)
    first = base.encode_first_frame(pixels)[0] if goes_on else None
    own = conditioning("a cat", base.encode_prompts(["a cat"])[0], first_frame=first, frame_rate=RATE)
    config = module("trainer_core.config").SampleConfig(width=64, height=64, frames=FRAMES, steps=2, guidance=1.0)
    settings = module("trainer_core.sampling.sampler").SamplerSettings.of(config, base)
    with training(base) as denoiser:
        found = base.own_sampler(lambda _: denoiser, [own], [7], settings)
        hook = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
        noisy = dict(zip(("main", "audio"), noise.unbind(), strict=True))
        with torch.no_grad():
            said = base.predict(denoiser, noisy, torch.ones(1), base.collate([own]))
        hook.remove()
    for one, other in zip(found.values(), expected.unbind(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert {name: value.shape for name, value in said.items()} == {name: one.shape for name, one in noisy.items()}
    assert_same(seen[-1], seen[0])


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def test_what_is_no_sound_vae_is_told(base: Any) -> None:
    sound, errors = module("nodes.comfy_models.sound"), module("trainer_core.errors")
    with pytest.raises(errors.BaseModelError, match="Load LTXV Audio VAE"):
        sound.check(base._model, base._linked.vae)
    with pytest.raises(errors.BaseModelError, match="WAN21_T2V makes no sound"):
        sound.check(MODELS["wan21_t2v"].make().model, base._linked.audio_vae)
