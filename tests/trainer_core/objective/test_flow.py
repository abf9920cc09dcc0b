"""Flow matching against closed forms, diffusers' scheduler and the distributions it claims."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.objective.flow import TIMESTEP_TYPES, FlowSchedule, noised, shifted, velocity

DEV = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
"""scheduler_config.json of FLUX.1-dev."""
SCHNELL = {**DEV, "shift": 1.0, "use_dynamic_shifting": False, "max_shift": 1.15}
SHIFTED = {**DEV, "use_dynamic_shifting": False}
"""A fixed shift of 3, as the embedded base has."""


def test_noised_ends_and_middle() -> None:
    clean, noise = torch.tensor([[2.0, -4.0]] * 3), torch.tensor([[1.0, 8.0]] * 3)
    x = noised(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert x.tolist() == [[2.0, -4.0], [1.75, -1.0], [1.0, 8.0]]


def test_times_belong_to_samples_and_not_to_positions() -> None:
    """Four samples of four rows: a time that broadcasts along the wrong axis would not show up in the shape."""
    clean, noise = torch.zeros(4, 4, 4, 4), torch.ones(4, 4, 4, 4)
    times = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for k in range(4):
        assert torch.equal(noised(clean, noise, times)[k], torch.full((4, 4, 4), times[k].item()))


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_a_perfect_prediction_leads_back_to_the_clean_latents(t: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 3, 4, generator=source), torch.randn(2, 3, 4, generator=source)
    x = noised(clean, noise, torch.full((2,), t))
    v = velocity(clean, noise)
    torch.testing.assert_close(x - t * v, clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x + (1 - t) * v, noise, atol=1e-5, rtol=1e-5)


def test_velocity_is_the_derivative_in_time() -> None:
    clean, noise = torch.randn(5, generator=torch.Generator().manual_seed(0)).double(), torch.ones(5).double()
    low, high = (noised(clean[None], noise[None], torch.tensor([t], dtype=torch.float64)) for t in (0.4, 0.4 + 1e-6))
    torch.testing.assert_close((high - low)[0] / 1e-6, velocity(clean, noise), atol=1e-8, rtol=1e-6)


def test_noised_keeps_the_latents_precision() -> None:
    x = noised(torch.zeros(1, 2, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([0.5]))
    assert x.dtype == torch.bfloat16


def test_shift_by_hand() -> None:
    """3 · 0.5 / (1 + 2 · 0.5) = 0.75; both ends stay."""
    t = torch.tensor([0.0, 0.5, 1.0])
    assert shifted(t, 3.0).tolist() == [0.0, 0.75, 1.0]
    assert shifted(t, 1.0).tolist() == t.tolist()


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.15, 3.0, 7.0])
def test_shift_is_that_of_diffusers(shift: float) -> None:
    sigmas = torch.linspace(1, 0.01, 50).numpy()
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(shifted(torch.from_numpy(sigmas), shift), theirs.sigmas[:-1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("config", [DEV, SCHNELL, SHIFTED], ids=["dev", "schnell", "shift 3"])
@pytest.mark.parametrize("steps", [1, 4, 16, 28])
@pytest.mark.parametrize("size", [(64, 64), (512, 768), (1024, 1024)])
def test_sampling_times_are_those_of_flux_pipeline(config: dict, steps: int, size: tuple[int, int]) -> None:
    tokens = (size[0] // 16) * (size[1] // 16)
    theirs = FlowMatchEulerDiscreteScheduler.from_config(config)
    # as FluxPipeline.__call__ does
    sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
    mu = calculate_shift(
        tokens, config["base_image_seq_len"], config["max_image_seq_len"], config["base_shift"], config["max_shift"]
    )
    retrieve_timesteps(theirs, steps, "cpu", None, sigmas=sigmas, mu=mu)
    ours = FlowSchedule.from_scheduler_config(config).sampling_times(steps, tokens)
    assert ours.dtype == torch.float32
    assert (ours[0], ours[-1]) == (1, 0)
    torch.testing.assert_close(ours, theirs.sigmas, atol=1e-6, rtol=1e-6)


@given(st.integers(1, 20_000))
def test_dynamic_shift_is_that_of_flux_pipeline(tokens: int) -> None:
    ours = FlowSchedule.from_scheduler_config(DEV).shift_for(tokens)
    assert ours == pytest.approx(math.exp(calculate_shift(tokens, 256, 4096, 0.5, 1.15)), rel=1e-9)
    assert FlowSchedule.from_scheduler_config(SHIFTED).shift_for(tokens) == 3.0


def test_schedule_of_an_empty_configuration_shifts_nothing() -> None:
    assert FlowSchedule.from_scheduler_config({}).sampling_times(4, 16).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


# --- how training draws its times ------------------------------------------------------------------------------------

DRAWS = 200_000
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def below(kind: str, t: float) -> float:
    """P(time < t), derived by hand. Shift 3: t = 3u / (1 + 2u), so u = t / (3 - 2t)."""
    return {"linear": t, "sigmoid": normal_cdf(math.log(t / (1 - t))), "shift": t / (3 - 2 * t)}[kind]


@pytest.mark.parametrize("kind", TIMESTEP_TYPES)
def test_distribution_of_training_times(kind: str) -> None:
    uniform = torch.rand(DRAWS, generator=torch.Generator().manual_seed(5))
    times = FlowSchedule.from_scheduler_config(SHIFTED).training_times(kind, uniform, tokens=16)
    assert times.dtype == torch.float32
    assert times.min() >= 0
    assert times.max() <= 1
    for t in QUANTILES:
        expected = below(kind, t)
        error = math.sqrt(expected * (1 - expected) / DRAWS)
        assert (times < t).double().mean().item() == pytest.approx(expected, abs=4 * error)


def test_sigmoid_times_against_draws_of_a_normal() -> None:
    normal = torch.distributions.Normal(0.0, 1.0)
    uniform = torch.linspace(0.001, 0.999, 999)
    times = FlowSchedule().training_times("sigmoid", uniform, tokens=16)
    torch.testing.assert_close(times, normal.icdf(uniform).sigmoid(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TIMESTEP_TYPES)
def test_training_times_grow_with_the_draw_and_bear_its_ends(kind: str) -> None:
    uniform = torch.tensor([0.0, 1e-7, 0.1, 0.5, 0.9, 1 - 1e-7, 1.0])
    times = FlowSchedule(shift=3).training_times(kind, uniform, tokens=16)
    assert times.isfinite().all()
    assert (times.diff() >= 0).all()


def test_shift_times_follow_the_size_where_the_schedule_does() -> None:
    dev, u = FlowSchedule.from_scheduler_config(DEV), torch.tensor([0.5])
    small, large = (dev.training_times("shift", u, tokens) for tokens in (256, 4096))
    assert small.item() == pytest.approx(math.exp(0.5) / (1 + math.exp(0.5)), rel=1e-6)
    assert large.item() == pytest.approx(math.exp(1.15) / (1 + math.exp(1.15)), rel=1e-6)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="bell"):
        FlowSchedule().training_times("bell", torch.tensor([0.5]), 16)
