"""Rectified-flow matching (Liu et al. 2022; Esser et al. 2024), with time t = σ in [0, 1], 1 being pure noise.

x_t = (1 - t) x_0 + t ε        target: v = ε - x_0
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TIMESTEP_TYPES = ("sigmoid", "linear", "shift")


def noised(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t for clean latents and noise (N, ...) at times t (N,)."""
    t = _per_sample(t, clean)
    return (1 - t) * clean + t * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The target of the prediction."""
    return noise - clean


def shifted(t: Tensor, shift: float) -> Tensor:
    """Moves times towards noise: s·t / (1 + (s - 1)·t) (Esser et al. 2024, eq. 23); shift 1 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True)
class FlowSchedule:
    """A model's noise schedule: a fixed shift, or one that grows with the number of image tokens (FLUX.1-dev).

    Dynamic: shift = exp(μ), μ linear in the tokens from `base_shift` at `base_tokens` to `max_shift` at `max_tokens`.
    """

    shift: float = 1.0
    dynamic: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    @classmethod
    def from_scheduler_config(cls, config: dict) -> FlowSchedule:
        """From diffusers' `scheduler_config.json` of a FlowMatchEulerDiscreteScheduler."""
        return cls(
            shift=float(config.get("shift") or 1.0),
            dynamic=bool(config.get("use_dynamic_shifting", False)),
            base_shift=float(config.get("base_shift") or 0.5),
            max_shift=float(config.get("max_shift") or 1.15),
            base_tokens=int(config.get("base_image_seq_len") or 256),
            max_tokens=int(config.get("max_image_seq_len") or 4096),
        )

    def shift_for(self, tokens: int) -> float:
        """The shift for a picture of so many image tokens."""
        if not self.dynamic:
            return self.shift
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + slope * (tokens - self.base_tokens))

    def sampling_times(self, steps: int, tokens: int) -> Tensor:
        """The `steps` + 1 times of a sampler, from 1 down to 0, in float32."""
        return shifted(torch.linspace(1.0, 0.0, steps + 1), self.shift_for(tokens))

    def training_times(self, kind: str, uniform: Tensor, tokens: int) -> Tensor:
        """Maps uniform draws in [0, 1) to times.

        `linear`: t = u. `sigmoid`: logit-normal(0, 1), by the normal's inverse distribution function. `shift`: the
        times that the sampler visits.

        Raises:
            ValueError: for another kind.
        """
        if kind == "linear":
            return uniform
        if kind == "sigmoid":
            # ndtri(0) is -inf: sigmoid takes it to t = 0, where nothing is left to learn, but nothing breaks either
            return torch.sigmoid(torch.special.ndtri(uniform.double())).to(uniform.dtype)
        if kind == "shift":
            return shifted(uniform, self.shift_for(tokens))
        raise ValueError(f"no such timestep type: {kind!r}; there are {', '.join(TIMESTEP_TYPES)}")


def _per_sample(t: Tensor, like: Tensor) -> Tensor:
    return t.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)
