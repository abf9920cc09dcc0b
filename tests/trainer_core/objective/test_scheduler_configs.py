"""Flow schedules read from scheduler_config.json, against diffusers' own schedulers with the same configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from trainer_core.errors import BaseModelError
from trainer_core.objective.flow import FlowSchedule

CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "FLUX.1-schnell": {"shift": 1.0, "use_dynamic_shifting": False},
    "FLUX.1-dev": {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    "Qwen-Image": {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
        "time_shift_type": "exponential",
    },
    "fixed with an end": {"shift": 3.0, "shift_terminal": 0.1},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "linear with an end": {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.1},
}


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
@pytest.mark.parametrize("steps", [2, 4, 28])
@pytest.mark.parametrize("name", CONFIGS)
def test_times_are_those_of_diffusers(name: str, steps: int, tokens: int) -> None:
    """As FluxPipeline asks its scheduler for them."""
    scheduler = FlowMatchEulerDiscreteScheduler(**CONFIGS[name])
    config = scheduler.config
    mu = calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = FlowSchedule.from_scheduler_config(CONFIGS[name]).sampling_times(steps, tokens)
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_a_single_step_has_nothing_to_stretch() -> None:
    times = FlowSchedule.from_scheduler_config({"shift_terminal": 0.1}).sampling_times(1, 256)
    assert times.tolist() == [1.0, 0.0]


def test_flow_shift_is_that_of_unipc() -> None:
    """Wan's scheduler. Before the shift, UniPC goes down to 0.001 and ours to 0."""
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
    scheduler = UniPCMultistepScheduler(**config)
    scheduler.set_timesteps(10)
    schedule = FlowSchedule.from_scheduler_config({**config, "shift": 1.0})
    linear = np.linspace(1, 0.001, 11)[:-1]
    np.testing.assert_allclose(5 * linear / (1 + 4 * linear), scheduler.sigmas.numpy()[:-1], rtol=1e-4, atol=1e-5)
    assert schedule.fixed_shift == schedule.shift_for(4096) == 5.0
    torch.testing.assert_close(schedule.sampling_times(10, 4096), scheduler.sigmas, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    "config",
    [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
        {"time_shift_type": "cubic"},
        {"prediction_type": "epsilon"},
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(BaseModelError, match=next(iter(config))):
        FlowSchedule.from_scheduler_config(config)
