"""The schedule that is read off a model's own `model_sampling`, against our own schedules and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ..pack import module

torch = pytest.importorskip("torch")

TIMES = (0.0, 0.013, 0.25, 0.5, 0.77, 0.999, 1.0)
LATENTS = (len(TIMES), 4, 3, 5)

# what is predicted, of clean latents, noise and σ, from the papers' definitions


def _flow(clean: Any, noise: Any, _sigma: Any) -> Any:
    return noise - clean


def _epsilon(_clean: Any, noise: Any, _sigma: Any) -> Any:
    return noise


def _v(clean: Any, noise: Any, sigma: Any) -> Any:
    """v = √ᾱ ε - √(1 - ᾱ) x_0 (Salimans & Ho 2022), ᾱ = 1 / (1 + σ²)."""
    return (noise - sigma * clean) / (1 + sigma**2).sqrt()


def _edm(data: float, sign: int) -> Callable[..., Any]:
    """F of Karras et al. 2022, table 1: x_0 = c_skip x + c_out F; v-prediction has the other sign."""

    def target(clean: Any, noise: Any, sigma: Any) -> Any:
        skip = data**2 / (sigma**2 + data**2)
        out = sigma * data / (sigma**2 + data**2).sqrt()
        return sign * (clean - skip * (clean + sigma * noise)) / out

    return target


def _clean(clean: Any, _noise: Any, _sigma: Any) -> Any:
    return clean


KINDS: dict[str, tuple[str, dict[str, Any], str, Callable[..., Any]]] = {
    "flow": ("FLOW", {"shift": 3.0}, "flow", _flow),
    "flow, multiplier 1": ("FLOW", {"shift": 6.0, "multiplier": 1.0}, "flow", _flow),
    "flow, louder noise": ("FLOW", {"noise_scale": 2.0}, "flow", lambda x, e, s: 2 * e - x),
    "FLUX": ("FLUX", {"shift": 1.15}, "flow", _flow),
    "sound and video": ("FLOW_AV", {"shift": 5.0, "audio_shift": 2.0}, "flow", _flow),
    "Cosmos": ("FLOW_COSMOS", {"sigma_min": 0.002, "sigma_max": 80.0}, "flow", _flow),
    "epsilon": ("EPS", {}, "epsilon", _epsilon),
    "Stable Cascade": ("STABLE_CASCADE", {"shift": 2.0}, "epsilon", _epsilon),
    "v": ("V_PREDICTION", {}, "v_prediction", _v),
    "v, zero terminal SNR": ("V_PREDICTION", {"zsnr": True}, "v_prediction", _v),
    "v of CogVideoX": ("V_PREDICTION_DDPM", {"zsnr": True}, "v_prediction", _v),
    "v, continuous": ("V_PREDICTION_CONTINUOUS", {"sigma_max": 500.0}, "v_prediction", _v),
    "v of EDM": ("V_PREDICTION_EDM", {"sigma_data": 0.5}, "v_prediction", _edm(0.5, -1)),
    "EDM": ("EDM", {"sigma_data": 0.5, "sigma_max": 80.0}, "v_prediction", _edm(0.5, 1)),
}


def sampling(kind: str, settings: dict[str, Any]) -> Any:
    """A `model_sampling` as ComfyUI makes it for a model."""
    import comfy.model_base

    config = SimpleNamespace(sampling_settings=settings)
    return comfy.model_base.model_sampling(config, comfy.model_base.ModelType[kind])


def schedule_of(found: Any) -> Any:
    return module("nodes.comfy_models.schedule").ComfySchedule(found)


def draws() -> tuple[Any, Any, Any]:
    """Times, clean latents and noise."""
    source = torch.Generator().manual_seed(1)
    return torch.tensor(TIMES), torch.randn(LATENTS, generator=source), torch.randn(LATENTS, generator=source)


def column(values: Any) -> Any:
    return values.double().view(-1, 1, 1, 1)


def relative(found: Any, expected: Any) -> float:
    """The largest difference of a sample, relative to how large its values are."""
    difference = (found.double() - expected.double()).flatten(1).norm(dim=1)
    return float((difference / expected.double().flatten(1).norm(dim=1).clamp_min(1e-9)).max())


@pytest.mark.parametrize("name", KINDS)
def test_noisy_latents_and_targets(name: str) -> None:
    """Closed forms; `calculate_denoised` makes the clean latents of the target, as it will when drawing."""
    kind, settings, prediction, target = KINDS[name]
    found = sampling(kind, settings)
    schedule = schedule_of(found)
    times, clean, noise = draws()
    sigma = schedule.sigma(times)
    s = column(sigma)
    noisy = schedule.add_noise(clean, noise, times)
    if kind == "V_PREDICTION_DDPM":  # unlike ComfyUI's noise_scaling, at which this model was never trained
        expected = (clean + s * noise) / (1 + s**2).sqrt()
    elif prediction == "flow" and kind != "FLOW_COSMOS":
        expected = (1 - s) * clean + s * settings.get("noise_scale", 1.0) * noise
    else:
        expected = clean + s * noise
    assert schedule.prediction == prediction
    assert relative(noisy, expected) < 1e-6
    assert relative(schedule.target(clean, noise, times), target(clean.double(), noise.double(), s)) < 2e-6
    asked = schedule.target(clean.double(), noise.double(), times)
    exact = schedule.add_noise(clean.double(), noise.double(), times)
    assert relative(found.calculate_denoised(sigma.double(), asked, exact), clean) < 2e-6
    assert schedule.snr(times).dtype == schedule.min_snr_weight(times, 5.0).dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
def test_weights_follow_from_the_noisy_latents(name: str) -> None:
    """SNR by what noising does to signal and noise; Min-SNR by what an error of the prediction does to x_0."""
    kind, settings, _, _ = KINDS[name]
    found = sampling(kind, settings)
    schedule = schedule_of(found)
    times = torch.tensor(TIMES)
    one, none = torch.ones(len(TIMES), 1, dtype=torch.float64), torch.zeros(len(TIMES), 1, dtype=torch.float64)
    signal, noise = schedule.add_noise(one, none, times), schedule.add_noise(none, one, times)
    sigma = schedule.sigma(times).double()
    moved = found.calculate_denoised(sigma, one, one) - found.calculate_denoised(sigma, none, one)
    snr = (signal / noise).square()[:, 0]
    assert torch.allclose(schedule.snr(times).double(), snr, rtol=1e-5)
    expected = snr.clamp(max=5) * moved.square()[:, 0]
    assert torch.allclose(schedule.min_snr_weight(times, 5.0).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("multiplier", [1, 1000])
def test_flow_is_our_own(multiplier: int) -> None:
    from trainer_core.objective.flow import FlowSchedule

    schedule, ours = schedule_of(sampling("FLOW", {"shift": 3.0, "multiplier": multiplier})), FlowSchedule(shift=3.0)
    times, clean, noise = draws()
    assert torch.equal(schedule.sigma(times[1:]), times[1:])
    assert relative(schedule.add_noise(clean, noise, times), ours.add_noise(clean, noise, times)) < 2e-6
    assert relative(schedule.target(clean, noise, times), ours.target(clean, noise, times)) < 2e-6
    inner = times[1:]
    assert torch.allclose(schedule.snr(inner), ours.snr(inner), rtol=1e-5)
    assert torch.allclose(schedule.min_snr_weight(inner, 5.0), ours.min_snr_weight(inner, 5.0), rtol=1e-5)
    assert schedule.shift_for(4096) == pytest.approx(ours.shift_for(4096))
    assert schedule.fixed_shift == pytest.approx(3.0)


def test_shifts() -> None:
    """That of ModelSamplingFlux is e^μ; ComfyUI's tables of σ are evenly spaced times that are shifted."""
    from trainer_core.errors import ConfigError
    from trainer_core.objective.flow import shifted

    flux = sampling("FLUX", {"shift": 1.15})
    assert schedule_of(flux).fixed_shift == pytest.approx(math.exp(1.15))
    even = torch.arange(1, 10001, dtype=torch.float64) / 10000
    assert torch.allclose(flux.sigmas.double(), shifted(even, schedule_of(flux).shift_for(1)), atol=1e-6)
    for kind in ("EPS", "V_PREDICTION", "EDM", "FLOW_COSMOS", "STABLE_CASCADE"):
        schedule = schedule_of(sampling(kind, {}))
        assert schedule.fixed_shift is None
        with pytest.raises(Exception, match="shift is for flow-matching models") as caught:
            schedule.shift_for(1)
        assert type(caught.value).__name__ == ConfigError.__name__


@pytest.mark.parametrize(
    ("prediction", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
def test_ddpm_is_our_own(prediction: Any, zero_snr: bool) -> None:
    """With ComfyUI's scale of the noisy latents, 1 / √ᾱ of ours."""
    from trainer_core.objective.ddpm import DdpmSchedule

    kind = "EPS" if prediction == "epsilon" else "V_PREDICTION"
    schedule = schedule_of(sampling(kind, {"zsnr": zero_snr}))
    ours = DdpmSchedule(prediction, zero_terminal_snr=zero_snr)
    times, clean, noise = draws()
    if zero_snr:  # the last row is 5e-8 in ComfyUI, and 0 in ours
        times = times.clamp(max=0.998)
    kept = ours.alphas_cumprod[ours.step_index(times)]
    assert torch.allclose(schedule.sigma(times), ((1 - kept) / kept).sqrt(), rtol=1e-4)
    scaled = ours.add_noise(clean, noise, times) / column(kept).sqrt()
    assert relative(schedule.add_noise(clean, noise, times), scaled) < 1e-4
    assert relative(schedule.target(clean, noise, times), ours.target(clean, noise, times)) < 1e-4
    assert torch.allclose(schedule.snr(times), ours.snr(times), rtol=2e-3)
    assert torch.allclose(schedule.min_snr_weight(times, 5.0), ours.min_snr_weight(times, 5.0), rtol=2e-3)


@pytest.mark.parametrize("name", ["epsilon", "v", "distilled", "sample"])
def test_what_a_node_sets(name: str) -> None:
    """The schedule follows objects as ModelSamplingDiscrete makes them, in batches of any size."""
    import comfy.model_sampling as kinds

    class Distilled(kinds.EPS):
        """Boundary conditions of a consistency model (Luo et al. 2023), which depend on the row of σ, as LCM's do."""

        def calculate_denoised(self, sigma: Any, model_output: Any, model_input: Any) -> Any:
            shape = (*sigma.shape[:1], *[1] * (model_output.ndim - 1))
            time, sigma = 10 * self.timestep(sigma).view(shape), sigma.view(shape)
            kept = 0.25 / (time**2 + 0.25)
            return (model_input - model_output * sigma) * time / (time**2 + 0.25) ** 0.5 + kept * model_input

    kind = {"epsilon": kinds.EPS, "v": kinds.V_PREDICTION, "distilled": Distilled, "sample": kinds.X0}[name]
    found = type("Advanced", (kinds.ModelSamplingDiscrete, kind), {})(SimpleNamespace(sampling_settings={}))
    schedule = schedule_of(found)
    times, clean, noise = draws()
    times = times.clamp_min(0.01)  # in row 0 a consistency model predicts nothing
    for count in (1, 2, len(TIMES)):
        t, x, e = times[-count:], clean[-count:].double(), noise[-count:].double()
        asked, noisy = schedule.target(x, e, t), schedule.add_noise(x, e, t)
        assert relative(found.calculate_denoised(schedule.sigma(t).double(), asked, noisy), x) < 1e-6
    if name == "sample":
        assert torch.equal(schedule.target(clean, noise, times), clean)


@pytest.mark.parametrize("kind", ["IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_models_without_noise_are_refused(kind: str) -> None:
    with pytest.raises(Exception, match="adds no noise"):
        schedule_of(sampling(kind, {}))
