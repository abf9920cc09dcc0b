"""DDPM (Ho et al. 2020) with ε- or v-prediction (Salimans & Ho 2022), as Stable Diffusion 1.5, 2 and SDXL use it.

x_t = √ᾱ x_0 + √(1 - ᾱ) ε      target: ε, or v = √ᾱ ε - √(1 - ᾱ) x_0      SNR = ᾱ / (1 - ᾱ)

The schedule has a table of ᾱ for T discrete steps. A time t in [0, 1] stands for step ⌊t·T⌋, at most T - 1.
Pictures are drawn by DDIM without added noise (Song et al. 2021, η = 0), from the very last step on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor

from ..errors import BaseModelError, ConfigError
from .schedule import Schedule, per_sample

Prediction = Literal["epsilon", "v_prediction"]
BetaSchedule = Literal["scaled_linear", "linear"]


@dataclass(frozen=True)
class DdpmSchedule(Schedule):
    """A discrete schedule. `beta_schedule` and the rest are diffusers' names and values."""

    prediction: Prediction = "epsilon"
    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    zero_terminal_snr: bool = False
    set_alpha_to_one: bool = True
    """Whether the sampler ends without any noise, or with that of step 0, as these models were published."""

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise BaseModelError(
                "a schedule that ends in pure noise (zero terminal SNR) cannot predict ε: at the last step nothing of "
                "the picture could be learned. It needs v_prediction"
            )

    @classmethod
    def from_scheduler_config(cls, config: dict) -> DdpmSchedule:
        """From diffusers' `scheduler_config.json` of any DDPM-like scheduler.

        Raises:
            BaseModelError: for a prediction type or beta schedule that is not known here.
        """
        if config.get("trained_betas") is not None:
            raise BaseModelError("the scheduler has a table of its own (trained_betas), which is not supported")
        prediction, betas = config.get("prediction_type") or "epsilon", config.get("beta_schedule") or "linear"
        if prediction not in ("epsilon", "v_prediction"):
            raise BaseModelError(f"the scheduler's prediction_type {prediction!r} is neither epsilon nor v_prediction")
        if betas not in ("scaled_linear", "linear"):
            raise BaseModelError(f"the scheduler's beta_schedule {betas!r} is neither scaled_linear nor linear")
        return cls(
            prediction=cast(Prediction, prediction),
            steps=int(config.get("num_train_timesteps") or 1000),
            beta_start=float(config.get("beta_start") or 1e-4),
            beta_end=float(config.get("beta_end") or 0.02),
            beta_schedule=cast(BetaSchedule, betas),
            zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
        )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each step (T,), float32 as diffusers computes it."""
        if self.beta_schedule == "scaled_linear":
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float32) ** 2
        else:
            betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float32)
        table = torch.cumprod(1 - betas, 0)
        return rescaled_to_zero_snr(table) if self.zero_terminal_snr else table

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        """`alphas_cumprod` by device."""
        return {}

    def step_index(self, t: Tensor) -> Tensor:
        """Step (N,) of times t, int64: what the denoiser reads as its timestep."""
        return (t * self.steps).floor().long().clamp(0, self.steps - 1)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, rest = self._factors(t, clean)
        return signal * clean + rest * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return noise
        signal, rest = self._factors(t, clean)
        return signal * noise - rest * clean

    def snr(self, t: Tensor) -> Tensor:
        kept = self._kept(t)
        return kept / (1 - kept)

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v (Hang et al. 2023, with v as in their appendix)."""
        snr = self.snr(t)
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        return snr.clamp(max=gamma) / (snr + 1)

    def shift_for(self, tokens: int) -> float:  # noqa: ARG002 - DDPM has no shift at any size
        raise ConfigError("train.timestep_type: shift is for flow-matching models; use linear or sigmoid for this one")

    def sampling_times(self, steps: int, tokens: int) -> Tensor:  # noqa: ARG002 - the same for pictures of any size
        """Evenly spaced steps that start at the noisiest (Lin et al. 2023, "trailing"), each by its middle; then 0.

        Raises:
            ConfigError: for more steps than the schedule has.
        """
        if steps > self.steps:
            raise ConfigError(f"sample.steps: {steps} is more than the {self.steps} noise levels of this base")
        visited = (self.steps - torch.arange(steps, dtype=torch.float64) * (self.steps / steps)).round() - 1
        return torch.cat([(visited + 0.5) / self.steps, torch.zeros(1, dtype=torch.float64)]).float()

    def step(self, x: Tensor, prediction: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """DDIM's: the picture that the prediction stands for, with the same noise at the next step's level."""
        kept = self._kept(here)
        signal, rest = kept.sqrt(), (1 - kept).sqrt()
        if self.prediction == "epsilon":
            clean, noise = (x - rest * prediction) / signal, prediction
        else:
            clean, noise = signal * x - rest * prediction, signal * prediction + rest * x
        end = torch.ones_like(kept) if self.set_alpha_to_one else self._kept(torch.zeros_like(there))
        left = torch.where(there > 0, self._kept(there), end)
        return left.sqrt() * clean + (1 - left).sqrt() * noise

    def _kept(self, t: Tensor) -> Tensor:
        if t.device not in self._tables:  # copied once: a GPU would be waited for in each step
            self._tables[t.device] = self.alphas_cumprod.to(t.device)
        return self._tables[t.device][self.step_index(t)]

    def _factors(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._kept(t)
        return per_sample(kept.sqrt(), like), per_sample((1 - kept).sqrt(), like)


def rescaled_to_zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ moved and stretched so that the last step is pure noise and the first stays (Lin et al. 2023, algorithm 1)."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * first / (first - last)).square()
