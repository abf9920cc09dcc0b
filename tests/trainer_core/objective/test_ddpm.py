"""DDPM against diffusers' scheduler: table, noise, both targets, SNR, min-SNR, zero terminal SNR."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from trainer_core.errors import BaseModelError, ConfigError
from trainer_core.objective.ddpm import DdpmSchedule, rescaled_to_zero_snr

SD15: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
"""scheduler_config.json of Stable Diffusion 1.5 and SDXL."""
SD21 = {**SD15, "prediction_type": "v_prediction"}
ZERO_SNR = {**SD21, "rescale_betas_zero_snr": True}
HO = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
"""Ho et al. 2020, diffusers' defaults."""
SHORT = {**SD21, "num_train_timesteps": 50}
ALL = {"sd15": SD15, "sd21": SD21, "zero snr": ZERO_SNR, "ho": HO, "50 steps": SHORT}
STEPS = torch.tensor([0, 1, 7, 24, 49])


def both(config: dict[str, Any]) -> tuple[DdpmSchedule, DDPMScheduler]:
    return DdpmSchedule.from_scheduler_config(config), DDPMScheduler(**config, clip_sample=False)


def spread_steps(config: dict[str, Any]) -> Tensor:
    last = config["num_train_timesteps"] - 1
    return torch.tensor([0, 1, last // 3, last // 2, last - 1, last])


def times_of(steps: Tensor, config: dict[str, Any]) -> Tensor:
    """A time in the middle of each step's share of [0, 1]."""
    return (steps.double() + 0.5).div(config["num_train_timesteps"]).float()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


every_config = pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())


@every_config
def test_the_table_is_that_of_diffusers(config: dict[str, Any]) -> None:
    ours, theirs = both(config)
    assert ours.alphas_cumprod.shape == (config["num_train_timesteps"],)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6, rtol=1e-5)


@every_config
def test_noise_is_added_as_diffusers_adds_it(config: dict[str, Any]) -> None:
    (ours, theirs), steps = both(config), spread_steps(config)
    clean, noise = normal(len(steps), 4, 6, 6), normal(len(steps), 4, 6, 6, seed=1)
    expected = theirs.add_noise(clean, noise, steps)
    torch.testing.assert_close(ours.add_noise(clean, noise, times_of(steps, config)), expected, atol=1e-5, rtol=1e-5)


@every_config
def test_the_target_is_that_of_diffusers(config: dict[str, Any]) -> None:
    """As diffusers' training scripts choose it: the noise, or get_velocity."""
    (ours, theirs), steps = both(config), spread_steps(config)
    clean, noise = normal(len(steps), 4, 6, 6), normal(len(steps), 4, 6, 6, seed=1)
    expected = theirs.get_velocity(clean, noise, steps) if ours.prediction == "v_prediction" else noise
    torch.testing.assert_close(ours.target(clean, noise, times_of(steps, config)), expected, atol=1e-5, rtol=1e-5)


def test_times_belong_to_samples_and_not_to_positions() -> None:
    schedule, steps = DdpmSchedule(prediction="v_prediction"), torch.tensor([0, 300, 600, 999])
    clean, noise, t = torch.zeros(4, 4, 4, 4), torch.ones(4, 4, 4, 4), times_of(steps, SD21)
    for k in range(4):
        alone = slice(k, k + 1)
        assert torch.equal(
            schedule.add_noise(clean, noise, t)[alone], schedule.add_noise(clean[alone], noise[alone], t[alone])
        )
        assert schedule.add_noise(clean, noise, t)[k].unique().numel() == 1
        assert schedule.target(clean, noise, t)[k].unique().numel() == 1


@every_config
def test_snr_is_that_of_diffusers(config: dict[str, Any]) -> None:
    (ours, theirs), steps = both(config), spread_steps(config)
    torch.testing.assert_close(ours.snr(times_of(steps, config)), compute_snr(theirs, steps), atol=1e-6, rtol=1e-4)


# --- min-SNR ---------------------------------------------------------------------------------------------------------


def predicted_pictures(theirs: DDPMScheduler, outputs: Tensor, steps: Tensor, x: Tensor) -> Tensor:
    """x_0 as diffusers' scheduler reads it from the denoiser's outputs."""
    source = torch.Generator().manual_seed(0)
    one_by_one = [
        theirs.step(outputs[k : k + 1], int(step), x[k : k + 1], generator=source).pred_original_sample
        for k, step in enumerate(steps)
    ]
    return torch.cat(one_by_one)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("config", [SD15, SD21, HO], ids=["epsilon", "v", "linear betas"])
def test_min_snr_is_the_weighting_of_the_error_in_the_picture(config: dict[str, Any], gamma: float) -> None:
    """Hang et al. weight the error of x_0 by min(SNR, γ); that error is made here by diffusers, from a wrong output."""
    ours, theirs = both(config)
    steps = torch.arange(0, 1000, 37)
    t, slip = times_of(steps, config), normal(len(steps), 64, seed=2)
    clean, noise = normal(len(steps), 64), normal(len(steps), 64, seed=1)
    x, right = theirs.add_noise(clean, noise, steps), ours.target(clean, noise, t)
    error = predicted_pictures(theirs, right + slip, steps, x) - predicted_pictures(theirs, right, steps, x)
    expected = compute_snr(theirs, steps).clamp(max=gamma) * error.square().mean(1)
    ours_weighted = ours.min_snr_weight(t, gamma) * slip.square().mean(1)
    torch.testing.assert_close(ours_weighted, expected, rtol=2e-3, atol=1e-4)


def test_min_snr_by_hand() -> None:
    """A table of two steps, ᾱ = 0.9 and 0.09 (β = 0.1, 0.9), so SNR = 9 and 0.0989. γ = 5."""
    epsilon = DdpmSchedule(steps=2, beta_start=0.1, beta_end=0.9, beta_schedule="linear")
    v = DdpmSchedule(prediction="v_prediction", steps=2, beta_start=0.1, beta_end=0.9, beta_schedule="linear")
    t = torch.tensor([0.25, 0.75])
    torch.testing.assert_close(epsilon.alphas_cumprod, torch.tensor([0.9, 0.09]))
    torch.testing.assert_close(epsilon.min_snr_weight(t, 5.0), torch.tensor([5 / 9, 1.0]))
    torch.testing.assert_close(v.min_snr_weight(t, 5.0), torch.tensor([5 / 10, 0.09]))


def test_min_snr_is_finite_where_nothing_of_the_picture_is_left() -> None:
    schedule = DdpmSchedule(prediction="v_prediction", zero_terminal_snr=True)
    assert schedule.snr(torch.tensor([1.0])).item() == 0
    assert schedule.min_snr_weight(torch.tensor([0.0, 0.5, 1.0]), 5.0).isfinite().all()


# --- zero terminal SNR -----------------------------------------------------------------------------------------------


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    """Lin et al. 2023, algorithm 1; diffusers applies it to betas."""
    theirs = DDIMScheduler(**ZERO_SNR)
    ours = DdpmSchedule.from_scheduler_config(ZERO_SNR).alphas_cumprod
    torch.testing.assert_close(ours, theirs.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert ours[-1] == 0


def test_zero_terminal_snr_by_hand() -> None:
    """√ᾱ = 0.9, 0.5, 0.1 is moved by 0.1 and stretched by 0.9 / 0.8: 0.9, 0.45, 0."""
    given = torch.tensor([0.81, 0.25, 0.01])
    torch.testing.assert_close(rescaled_to_zero_snr(given), torch.tensor([0.81, 0.2025, 0.0]))
    assert torch.equal(given, torch.tensor([0.81, 0.25, 0.01])), "the table given is not changed"


def test_pure_noise_is_learned_as_minus_the_picture() -> None:
    """At the last step of such a schedule x is the noise itself and v is -x_0."""
    schedule = DdpmSchedule.from_scheduler_config(ZERO_SNR)
    clean, noise, end = normal(2, 3), normal(2, 3, seed=1), torch.tensor([1.0, 0.9999])
    assert torch.equal(schedule.add_noise(clean, noise, end), noise)
    assert torch.equal(schedule.target(clean, noise, end), -clean)


def test_epsilon_cannot_end_in_pure_noise() -> None:
    with pytest.raises(BaseModelError, match="v_prediction"):
        DdpmSchedule.from_scheduler_config({**SD15, "rescale_betas_zero_snr": True})


# --- steps and configurations ----------------------------------------------------------------------------------------


def test_a_time_stands_for_the_step_whose_share_it_is_in() -> None:
    schedule = DdpmSchedule(steps=4)
    t = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.7501, 0.9999, 1.0])
    assert schedule.step_index(t).tolist() == [0, 0, 1, 2, 3, 3, 3]
    assert schedule.step_index(t).dtype == torch.int64


def test_uniform_times_draw_every_step_alike() -> None:
    """Pearson's χ² over 1,000 steps and a million draws: 999 ± 5 · √(2 · 999)."""
    uniform = torch.rand(1_000_000, generator=torch.Generator().manual_seed(9))
    counts = DdpmSchedule().step_index(uniform).bincount(minlength=1000).double()
    assert len(counts) == 1000
    statistic = ((counts - 1000).square() / 1000).sum().item()
    assert statistic == pytest.approx(999, abs=5 * (2 * 999) ** 0.5)


def test_absent_settings_are_diffusers_defaults() -> None:
    torch.testing.assert_close(
        DdpmSchedule.from_scheduler_config({}).alphas_cumprod, DDPMScheduler().alphas_cumprod, atol=1e-6, rtol=1e-5
    )
    assert DdpmSchedule.from_scheduler_config({}).prediction == "epsilon"


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "sample"},
        {"prediction_type": "flow_prediction"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_it_does_not_know_is_refused(changes: dict[str, Any]) -> None:
    """Rather than trained with another schedule than the model's own."""
    with pytest.raises(BaseModelError, match=next(iter(changes))):
        DdpmSchedule.from_scheduler_config({**SD15, **changes})


def test_it_has_no_shift() -> None:
    with pytest.raises(ConfigError, match="timestep_type"):
        DdpmSchedule().shift_for(1024)


# --- the sampler -----------------------------------------------------------------------------------------------------

OWN = {**SD15, "set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True, "clip_sample": False}
"""scheduler_config.json of SD 1.5 and of SDXL, but for its class."""
SAMPLED = {
    "as published": OWN,
    "v": {**OWN, "prediction_type": "v_prediction"},
    "v, zero snr": {**OWN, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "ends clean": {**OWN, "set_alpha_to_one": True},
}


def ddim_of(config: dict[str, Any], steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("config", SAMPLED.values(), ids=SAMPLED.keys())
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_a_picture_is_drawn_as_diffusers_ddim_draws_it(config: dict[str, Any], steps: int) -> None:
    """The same steps of the schedule, and from the same predictions the same picture."""
    ours, theirs = DdpmSchedule.from_scheduler_config(config), ddim_of(config, steps)
    times = ours.sampling_times(steps, 4096)
    assert (times[-1], times.dtype, len(times)) == (0, torch.float32, steps + 1)
    assert ours.step_index(times[:-1]).tolist() == theirs.timesteps.tolist()
    assert theirs.timesteps[0] == 999
    x = expected = normal(2, 4, 6, 6)
    for k, timestep in enumerate(theirs.timesteps):
        # a stand-in for a denoiser; at step 999 without a trace of the picture, ε cannot be divided by √ᾱ, v can
        prediction = 0.9 * x.tanh() + 0.1 * normal(2, 4, 6, 6, seed=k)
        x = ours.step(x, prediction, times[k], times[k + 1])
        expected = theirs.step(prediction, timestep, expected).prev_sample
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_the_visited_steps_are_those_of_diffusers_at_any_number() -> None:
    schedule = DdpmSchedule()
    for steps in (1, 2, 3, 7, 20, 28, 30, 33, 50, 333, 999, 1000):
        theirs = ddim_of(OWN, steps).timesteps
        assert schedule.step_index(schedule.sampling_times(steps, 1)[:-1]).tolist() == theirs.tolist()


def test_a_right_prediction_leads_back_to_the_picture() -> None:
    """However many steps, if the denoiser knows the noise; these schedules end without any."""
    for prediction, zero in (("epsilon", False), ("v_prediction", False), ("v_prediction", True)):
        schedule = DdpmSchedule(prediction=prediction, zero_terminal_snr=zero)  # type: ignore[arg-type]
        clean, noise = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1)
        times = schedule.sampling_times(10, 64)
        x = schedule.add_noise(clean, noise, times[:1])
        for here, there in pairwise(times):
            x = schedule.step(x, schedule.target(clean, noise, here[None]), here, there)
        torch.testing.assert_close(x, clean, rtol=1e-4, atol=2e-4)


def test_more_steps_than_noise_levels() -> None:
    with pytest.raises(ConfigError, match=r"sample\.steps: 51 .* 50"):
        DdpmSchedule(steps=50).sampling_times(51, 1)


def test_there_is_no_shift_to_tell() -> None:
    assert DdpmSchedule().fixed_shift is None
