"""Rectified-flow matching (Liu et al. 2022; Esser et al. 2024), with time t = σ in [0, 1], 1 being pure noise.

x_t = (1 - t) x_0 + t ε        target: v = ε - x_0        SNR(t) = ((1 - t) / t)²
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BaseModelError
from .schedule import Schedule, per_sample

_UNKNOWN_SPACINGS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
"""Options of a scheduler, by diffusers' names."""


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """A flow model's noise schedule: a fixed shift, or one that grows with the number of image tokens (FLUX.1-dev).

    Dynamic: shift = exp(μ), or μ itself where it `is_linear`; μ is linear in the tokens from `base_shift` at
    `base_tokens` to `max_shift` at `max_tokens`.
    """

    shift: float = 1.0
    dynamic: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    is_linear: bool = False
    terminal: float | None = None
    """Where the sampler's last time before 0 comes to lie: all are stretched for it. Training's times are not, since
    where they would lie depends on the number of steps."""

    @classmethod
    def from_scheduler_config(cls, config: dict) -> FlowSchedule:
        """From diffusers' `scheduler_config.json`: of a FlowMatchEulerDiscreteScheduler, or of one with flow sigmas.

        The latter (UniPC, DPM++) are known by `use_flow_sigmas` and call the shift `flow_shift`.

        Raises:
            BaseModelError: for one that is of no flow model, or spaces its times in a way that is not known here.
        """
        prediction = config.get("prediction_type")
        if prediction not in (None, "flow_prediction"):
            raise BaseModelError(f"the scheduler's prediction_type {prediction!r} is not that of a flow model")
        for name in _UNKNOWN_SPACINGS:
            if config.get(name):
                raise BaseModelError(f"the scheduler's {name} is not supported: previews would visit other times")
        kind = config.get("time_shift_type") or "exponential"
        if kind not in ("exponential", "linear"):
            raise BaseModelError(f"the scheduler's time_shift_type {kind!r} is neither exponential nor linear")

        def number(name: str, default: float) -> float:
            value = config.get(name)
            return default if value is None else float(value)

        return cls(
            shift=number("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0),
            dynamic=bool(config.get("use_dynamic_shifting", False)),
            base_shift=number("base_shift", 0.5),
            max_shift=number("max_shift", 1.15),
            base_tokens=int(number("base_image_seq_len", 256)),
            max_tokens=int(number("max_image_seq_len", 4096)),
            is_linear=kind == "linear",
            terminal=number("shift_terminal", 0.0) or None,
        )

    @property
    def prediction(self) -> str:
        return "flow"

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = per_sample(t, clean)
        return (1 - t) * clean + t * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002 - v is the same at every t
        return noise - clean

    def snr(self, t: Tensor) -> Tensor:
        return ((1 - t) / t).square()

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """min(SNR, γ) · t².

        Min-SNR (Hang et al. 2023) weights the error in x_0 by min(SNR, γ). As v = (x_t - x_0) / t, the error in v is
        that in x_0 divided by t²; the same weight on the loss of v is min(SNR, γ) · t² = min((1 - t)², γ t²).
        """
        return torch.minimum((1 - t).square(), gamma * t.square())

    def shift_for(self, tokens: int) -> float:
        if not self.dynamic:
            return self.shift
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        return mu if self.is_linear else math.exp(mu)

    @property
    def fixed_shift(self) -> float | None:
        return None if self.dynamic else self.shift

    def sampling_times(self, steps: int, tokens: int) -> Tensor:
        times = shifted(torch.linspace(1.0, 0.0, steps + 1), self.shift_for(tokens))
        if self.terminal is not None and steps > 1:  # a single step begins at 1 and has nothing to stretch
            times[:-1] = 1 - (1 - times[:-1]) * ((1 - self.terminal) / (1 - times[-2]))
        return times

    def step(self, x: Tensor, prediction: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """Euler's."""
        return x + (there - here) * prediction


def shifted(t: Tensor, shift: float) -> Tensor:
    """Moves times towards noise: s·t / (1 + (s - 1)·t) (Esser et al. 2024, eq. 23); shift 1 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)
