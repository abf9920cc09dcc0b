"""Flow matching against closed forms and diffusers' scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.objective.flow import FlowSchedule, shifted

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
FLOW = FlowSchedule()


def test_noised_ends_and_middle() -> None:
    clean, noise = torch.tensor([[2.0, -4.0]] * 3), torch.tensor([[1.0, 8.0]] * 3)
    x = FLOW.add_noise(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert x.tolist() == [[2.0, -4.0], [1.75, -1.0], [1.0, 8.0]]
    assert FLOW.target(clean, noise, torch.tensor([0.0, 0.25, 1.0])).tolist() == [[-1.0, 12.0]] * 3


def test_times_belong_to_samples_and_not_to_positions() -> None:
    """Four samples of four rows: a time that broadcasts along the wrong axis would not show up in the shape."""
    clean, noise = torch.zeros(4, 4, 4, 4), torch.ones(4, 4, 4, 4)
    times = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for k in range(4):
        assert torch.equal(FLOW.add_noise(clean, noise, times)[k], torch.full((4, 4, 4), times[k].item()))


def test_noise_is_added_as_diffusers_adds_it() -> None:
    theirs, source = FlowMatchEulerDiscreteScheduler(shift=3.0), torch.Generator().manual_seed(4)
    clean, noise = torch.randn(5, 3, 4, 4, generator=source), torch.randn(5, 3, 4, 4, generator=source)
    chosen = torch.tensor([0, 10, 500, 900, 999])
    expected = theirs.scale_noise(clean, theirs.timesteps[chosen], noise)
    torch.testing.assert_close(FLOW.add_noise(clean, noise, theirs.sigmas[chosen]), expected, atol=1e-6, rtol=1e-6)


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_a_perfect_prediction_leads_back_to_the_clean_latents(t: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 3, 4, generator=source), torch.randn(2, 3, 4, generator=source)
    times = torch.full((2,), t)
    x, v = FLOW.add_noise(clean, noise, times), FLOW.target(clean, noise, times)
    torch.testing.assert_close(x - t * v, clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x + (1 - t) * v, noise, atol=1e-5, rtol=1e-5)


def test_the_target_is_the_derivative_in_time() -> None:
    clean = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.ones_like(clean)
    here = torch.tensor([0.4], dtype=torch.float64)
    low, high = FLOW.add_noise(clean, noise, here), FLOW.add_noise(clean, noise, here + 1e-6)
    torch.testing.assert_close((high - low) / 1e-6, FLOW.target(clean, noise, here), atol=1e-8, rtol=1e-6)


def test_noised_keeps_the_latents_precision() -> None:
    clean, noise = torch.zeros(1, 2, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bfloat16)
    assert FLOW.add_noise(clean, noise, torch.tensor([0.5])).dtype == torch.bfloat16


# --- weighting -------------------------------------------------------------------------------------------------------


def test_snr_is_measured_in_what_is_noised() -> None:
    """The squared share of the picture over that of the noise, read off x_t of a picture of ones and noise of ones."""
    times = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    ones, zeros = torch.ones(5, 1, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64)
    signal, rest = FLOW.add_noise(ones, zeros, times), FLOW.add_noise(zeros, ones, times)
    torch.testing.assert_close(FLOW.snr(times), (signal / rest).square()[:, 0])
    assert FLOW.snr(torch.tensor([0.5])).item() == 1


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_min_snr_is_the_weighting_of_the_error_in_the_picture(gamma: float) -> None:
    """Hang et al. weight the error of x_0 by min(SNR, γ). Here that error is made by an Euler step down to 0."""
    source = torch.Generator().manual_seed(11)
    times = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    clean, noise, slip = (torch.randn(50, 32, generator=source, dtype=torch.float64) for _ in range(3))
    x, v = FLOW.add_noise(clean, noise, times), FLOW.target(clean, noise, times)
    wrong = x + (0 - times)[:, None] * (v + slip)
    snr = (1 - times) ** 2 / times**2
    expected = torch.minimum(snr, torch.tensor(gamma)) * (wrong - clean).square().mean(1)
    torch.testing.assert_close(FLOW.min_snr_weight(times, gamma) * slip.square().mean(1), expected)


def test_min_snr_by_hand_and_at_the_ends() -> None:
    """At t = 1/2 SNR is 1: min(1, 5) / 4. At t = 1/4 it is 9: 5 / 16. Without noise or picture there is no weight."""
    weight = FLOW.min_snr_weight(torch.tensor([0.0, 0.25, 0.5, 1.0]), 5.0)
    assert weight.tolist() == [0.0, 0.3125, 0.25, 0.0]


# --- shift -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("shift", [0.5, 3.0, 12.0])
def test_shift_divides_the_odds(shift: float) -> None:
    """Esser et al.: shifting multiplies the ratio of noise to picture t / (1 - t) by the shift."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    moved = shifted(t, shift)
    torch.testing.assert_close(moved / (1 - moved), shift * t / (1 - t))
    torch.testing.assert_close(shifted(moved, 1 / shift), t)


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


def test_a_dynamic_shift_of_nothing_is_read_as_written() -> None:
    """exp(0) = 1: a base_shift of 0 is a value, not an absent one."""
    config = {"use_dynamic_shifting": True, "base_shift": 0.0, "max_shift": 0.0}
    assert FlowSchedule.from_scheduler_config(config).shift_for(1000) == 1.0


def test_only_a_shift_that_is_the_same_everywhere_can_be_told() -> None:
    assert FlowSchedule.from_scheduler_config(DEV).fixed_shift is None
    assert FlowSchedule.from_scheduler_config(SCHNELL).fixed_shift == 1.0
    assert FlowSchedule.from_scheduler_config(SHIFTED).fixed_shift == 3.0
