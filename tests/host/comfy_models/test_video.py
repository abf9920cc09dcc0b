"""Videos that go on from an image: the denoiser is given what it gets in ComfyUI, while drawing and training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ..pack import module
from .editing import BASES, base_of, bytes_of, images, parts_of, pixels
from .hosted import training

pytestmark = [
    pytest.mark.host,
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor", "ignore:__array_wrap__ must accept"),
]
NAMES = [
    "wan21_i2v",
    "wan21_flf2v",
    "wan22_i2v_high",
    "hunyuan_video_i2v",
    "skyreels_i2v",
    "hunyuan_video15",
    "cogvideox_i2v",
    "kandinsky5",
    "wan22_5b",
    "ltxv",
    "ltx2",
    "cosmos_i2v",
    "cosmos2_i2v",
]
SIZE, FRAMES = (64, 64), 9


@pytest.fixture(scope="module", autouse=True)
def _bases() -> Iterator[None]:
    yield
    BASES.clear()


@pytest.mark.parametrize("name", NAMES)
def test_who_goes_on_from_an_image(name: str) -> None:
    from .stock_video import ALWAYS, KEPT

    spec = base_of(name).spec
    assert spec.first_frame is (name in ALWAYS)
    assert spec.first_frame_chosen is (name not in ALWAYS)
    assert spec.first_frame_kept is (name in KEPT)


@pytest.mark.parametrize("name", ["wan21_t2v", "cosmos", "hunyuan_video", "mochi", "cogvideox", "wan21_vace"])
def test_who_does_not(name: str) -> None:
    assert not base_of(name).spec.takes_first_frame


def clip() -> Any:
    """(3, T, H, W) in [-1, 1]"""
    return torch.stack([pixels([bytes_of(*SIZE, seed)])[0] for seed in range(FRAMES)], 1)


def conditioned(name: str) -> Any:
    """Ours, for a batch of one."""
    base = base_of(name)
    (text,) = base.encode_prompts(["a cat"])
    (first,) = base.encode_first_frame(clip()[None])
    rate = 25.0 if name.startswith("ltx") else None
    return module("trainer_core.families.conditioning").Conditioning("a cat", text, first_frame=first, frame_rate=rate)


def stock(name: str) -> Any:
    """ComfyUI's: conditioning and LATENT."""
    from .stock_edit import text
    from .stock_video import begun

    _, clip_model, vae = parts_of(name)
    positive, latent = begun(name, text(clip_model, "a cat"), vae, images([bytes_of(*SIZE, 0)])[0], SIZE, FRAMES)
    if base_of(name).guidance_distilled:
        positive = [[positive[0][0], positive[0][1] | {"guidance": 6.0}]]
    return positive, latent


def settings(base: Any, **more: Any) -> Any:
    config = module("trainer_core.config").SampleConfig(
        width=SIZE[0], height=SIZE[1], frames=FRAMES, steps=2, guidance=1.0, **more
    )
    return module("trainer_core.sampling.sampler").SamplerSettings.of(config, base)


def ksampler(name: str, steps: int, sampler: str) -> Any:
    """The latents that KSampler gives."""
    import comfy.sample

    positive, latent = stock(name)
    patcher = parts_of(name)[0]
    empty = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    noise = comfy.sample.prepare_noise(empty, 7)
    scheduler = "simple" if base_of(name).schedule.prediction == "flow" else "normal"
    more = {"noise_mask": latent.get("noise_mask"), "seed": 7, "disable_pbar": True}
    with torch.inference_mode():
        found = comfy.sample.sample(patcher, noise, steps, 1.0, sampler, scheduler, positive, positive, empty, **more)
    return noise, empty, found


@pytest.mark.parametrize("name", NAMES)
def test_previews_are_what_ksampler_gives(name: str) -> None:
    base = base_of(name)
    *_, expected = ksampler(name, 2, "euler")
    guidance = 6.0 if base.guidance_distilled else 1.0
    given = settings(base)
    given = type(given)(**{**vars(given), "guidance": guidance})
    with training(base) as denoiser:
        found = base.own_sampler(lambda _: denoiser, [conditioned(name)], [7], given)["main"]
    if name == "kandinsky5":  # its template replaces the first frame by `cond_latent`
        expected = torch.cat([stock(name)[0][0][1]["time_dim_replace"], expected[:, :, 1:]], 2)
    expected = base._model.latent_format.process_in(expected.clone())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_denoiser_sees_the_same_while_it_trains(name: str) -> None:
    """Noisy latents with what is beside them, and the time of each frame, as in the first step of KSampler."""
    base, patcher = base_of(name), parts_of(name)[0]
    model = patcher.model
    seen: list[Any] = []
    hook = model.diffusion_model.register_forward_pre_hook(
        lambda _, args, more: seen.append((args, more)), with_kwargs=True
    )
    try:
        noise, empty, _ = ksampler(name, 1, "euler")
    finally:
        hook.remove()
    sampling = model.model_sampling
    import comfy.samplers

    scheduler = "simple" if base.schedule.prediction == "flow" else "normal"
    sigma = comfy.samplers.calculate_sigmas(sampling, scheduler, 1)[:1]
    clean = model.process_latent_in(empty.clone()) if empty.count_nonzero() else empty
    noisy = sampling.noise_scaling(sigma.view(1, 1, 1, 1, 1), noise, clean)
    with training(base) as denoiser:
        trained = denoiser.register_forward_pre_hook(lambda _, args, more: seen.append((args, more)), with_kwargs=True)
        with torch.no_grad():
            base.predict(denoiser, {"main": noisy}, base.schedule.times(sigma), base.collate([conditioned(name)], 6.0))
        trained.remove()
    (expected, its), (found, ours) = seen
    assert_same(found, expected)
    names = {"context", "denoise_mask", "time_dim_replace", "frame_rate", "fps", "y", "attention_mask"}
    for key in names & {**its, **ours}.keys():
        assert_same(ours[key], its[key])


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=1e-4)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize(("name", "boundary"), [("wan22_t2v_high", 0.875), ("wan22_i2v_high", 0.9)])
def test_two_experts_draw_as_two_ksamplers(name: str, boundary: float) -> None:
    """KSamplerAdvanced up to the step whose time is the other expert's, and another from there."""
    import comfy.sample
    import comfy.samplers

    from .editing import ZOO
    from .stock_edit import text
    from .zoo import encoders

    model, low = ZOO[name], ZOO[name.replace("high", "low")]
    parts = (model.make(), low.make(seed=5)), encoders.clip(model), encoders.vae(model)
    linked = module("nodes.comfy_models.loading").Linked(*parts)
    base = module("nodes.comfy_models.base").ComfyBase(linked, module("trainer_core.config").ModelConfig(device="cpu"))
    (embedding,) = base.encode_prompts(["a cat"])
    goes_on = base.spec.first_frame
    first = base.encode_first_frame(clip()[None])[0] if goes_on else None
    own = module("trainer_core.families.conditioning").Conditioning("a cat", embedding, first_frame=first)
    config = module("trainer_core.config").SampleConfig(width=64, height=64, frames=FRAMES, steps=10, guidance=1.0)
    settings = module("trainer_core.sampling.sampler").SamplerSettings.of(config, base)
    used: list[str] = []

    def at(t: float) -> Any:
        used.append("high_noise" if t >= boundary else "low_noise")
        return denoisers[used[-1]]

    with base.training_pass():
        denoisers = {one.name: base.load_denoiser(one.name) for one in base.spec.experts}
        found = base.own_sampler(at, [own], [7], settings)["main"]
    base.close()
    assert used == ["high_noise", "low_noise"]

    positive = stock_of(name, text(parts[1], "a cat"), parts[2]) if goes_on else text(parts[1], "a cat")
    sigmas = comfy.samplers.calculate_sigmas(parts[0][0].get_model_object("model_sampling"), "simple", 10)
    switch = int((sigmas[:-1] >= boundary).sum())
    assert 0 < switch < 10
    latent = torch.zeros(1, *found.shape[1:])
    noise = comfy.sample.prepare_noise(latent, 7)
    more = {"seed": 7, "disable_pbar": True}
    with torch.inference_mode():
        latent = comfy.sample.sample(
            parts[0][0],
            noise,
            10,
            1.0,
            "euler",
            "simple",
            positive,
            positive,
            latent,
            start_step=0,
            last_step=switch,
            force_full_denoise=False,
            **more,
        )
        expected = comfy.sample.sample(
            parts[0][1],
            torch.zeros_like(noise),
            10,
            1.0,
            "euler",
            "simple",
            positive,
            positive,
            latent,
            disable_noise=True,
            start_step=switch,
            last_step=10000,
            force_full_denoise=True,
            **more,
        )
    expected = base._model.latent_format.process_in(expected.clone())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_two_experts_are_of_one_architecture() -> None:
    from .zoo import MODELS, encoders

    model, other = MODELS["wan22_t2v_high"], MODELS["wan22_i2v_low"]
    given = (model.make(), other.make()), encoders.clip(model), encoders.vae(model), {"device": "cpu"}
    with pytest.raises(module("trainer_core.errors").BaseModelError, match=r"high noise is WAN21_T2V.*low.*WAN21_I2V"):
        module("nodes.comfy_models.links").linked_model(*given)


def stock_of(name: str, text: Any, vae: Any) -> Any:
    """ComfyUI's conditioning of a video that goes on from an image."""
    from .stock_video import begun

    return begun(name, text, vae, images([bytes_of(*SIZE, 0)])[0], SIZE, FRAMES)[0]
