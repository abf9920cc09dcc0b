"""The noise schedule of a model that ComfyUI has loaded, read off its own `model_sampling`, whatever that is.

For every `model_sampling`, the noisy latents are x = c·x_0 + d·ε and the picture that a raw prediction stands for is
x_0 = a·x + b·prediction, with factors of σ alone: `noise_scaling` and `calculate_denoised` of zeros and ones. So the
prediction that would be right is ((1 - a·c)·x_0 - a·d·ε) / b. That is ε - x_0 for flow matching, ε or v for DDPM, and
x_0 itself for models that predict it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.model_sampling as kinds
import torch

from ...trainer_core.errors import BaseModelError, ConfigError
from ...trainer_core.families.device import upload
from ...trainer_core.objective.schedule import Schedule, per_sample

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = (
    (kinds.CONST, "flow"),
    (kinds.COSMOS_RFLOW, "flow"),
    (kinds.V_PREDICTION_DDPM, "v_prediction"),
    (kinds.X0, "sample"),
    (kinds.V_PREDICTION, "v_prediction"),
    (kinds.EPS, "epsilon"),
)
"""ComfyUI's classes → what diffusers calls the prediction; the first that fits counts, since they inherit."""
_LOWEST = 1e-6
"""σ where t is 0: at 0 itself there is nothing to predict, and the factors have no value."""


class Factors(NamedTuple):
    """x = c·x_0 + d·ε, x_0 = a·x + b·prediction: each (N,), in double precision."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor


class ComfySchedule(Schedule):
    """A `model_sampling`, with times t in [0, 1].

    For flow matching t is σ (σ / (1 + σ) where σ has no upper end); for the others it stands for row ⌊t·T⌋ of the table
    of σ, as for `DdpmSchedule`.
    """

    def __init__(self, sampling: Any) -> None:
        """Raises:
        BaseModelError: for models that start from a picture and add no noise, of which there is nothing to train.
        """
        if isinstance(sampling, (kinds.IMG_TO_IMG, kinds.IMG_TO_IMG_FLOW)):
            raise BaseModelError(
                "this model turns a picture into another in one step and adds no noise: it has no LoRA"
            )
        self.sampling = sampling
        self._table: Tensor = sampling.sigmas.detach().cpu().clone()

    @property
    def prediction(self) -> str:
        return next((name for kind, name in _NAMES if isinstance(self.sampling, kind)), type(self.sampling).__name__)

    def sigma(self, t: Tensor) -> Tensor:
        """σ (N,) of times (N,), fp32, as ComfyUI's models read it."""
        if isinstance(self.sampling, kinds.CONST):
            return t.float().clamp_min(_LOWEST)
        if isinstance(self.sampling, kinds.COSMOS_RFLOW):
            highest = upload(self._table[-1], t.device)
            return torch.minimum(t.float() / (1 - t.float()), highest).clamp_min(_LOWEST)
        rows = len(self._table)
        return upload(self._table, t.device)[(t * rows).floor().long().clamp(0, rows - 1)]

    def times(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`, for σ that a sampler visits: falling times, to tell which expert is for which."""
        if isinstance(self.sampling, kinds.CONST):
            return sigma
        if isinstance(self.sampling, kinds.COSMOS_RFLOW):
            return sigma / (1 + sigma)
        return torch.searchsorted(self._table, sigma.to(self._table)) / len(self._table)

    def factors(self, t: Tensor) -> Factors:
        """What times (N,) mean."""
        sigma = self.sigma(t).double()
        zeros, ones = torch.zeros_like(sigma)[:, None], torch.ones_like(sigma)[:, None]
        sampling = self.sampling
        # CogVideoX was trained on noisy latents of variance 1, which is not what ComfyUI's noise_scaling gives for it
        scale = (
            (1 + sigma.square()).rsqrt() if isinstance(sampling, kinds.V_PREDICTION_DDPM) else torch.ones_like(sigma)
        )
        return Factors(
            a=sampling.calculate_denoised(sigma, zeros.clone(), ones.clone())[:, 0],
            b=sampling.calculate_denoised(sigma, ones.clone(), zeros.clone())[:, 0],
            c=sampling.noise_scaling(sigma, zeros.clone(), ones.clone())[:, 0] * scale,
            d=sampling.noise_scaling(sigma, ones.clone(), zeros.clone())[:, 0] * scale,
        )

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        factors = self.factors(t)
        return per_sample(factors.c, clean) * clean + per_sample(factors.d, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a, b, c, d = self.factors(t)
        return per_sample(-a * d / b, clean) * noise + per_sample((1 - a * c) / b, clean) * clean

    def prediction_of(self, denoised: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The prediction that stands for a picture, where x are the noisy latents."""
        a, b, _, _ = self.factors(t)
        return (denoised - per_sample(a, x) * x) / per_sample(b, x)

    def snr(self, t: Tensor) -> Tensor:
        factors = self.factors(t)
        return (factors.c / factors.d).square().float()

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """min(SNR, γ) · b²: Hang et al. 2023 weight the error in x_0, which is b times that of the prediction."""
        return (self.snr(t).clamp(max=gamma) * self.factors(t).b.square()).float()

    def shift_for(self, tokens: int) -> float:  # noqa: ARG002 - ComfyUI's shift is the same for all sizes
        shift = self.fixed_shift
        if shift is None:
            raise ConfigError(
                "train.timestep_type: shift is for flow-matching models; use linear or sigmoid for this one"
            )
        return shift

    @property
    def fixed_shift(self) -> float | None:
        """The model's own, or what a node such as ModelSamplingSD3 has set; that of ModelSamplingFlux is e^μ there."""
        if not isinstance(self.sampling, kinds.CONST):
            return None
        # σ(1/2) = s / (1 + s)
        half = torch.tensor(0.5, dtype=torch.float64)
        middle = float(self.sampling.sigma(half * getattr(self.sampling, "multiplier", 1.0)))
        return middle / (1 - middle)

    def sampling_times(self, steps: int, tokens: int) -> Tensor:
        """Never asked for: ComfyUI's own samplers draw (`sampling.py`)."""
        raise NotImplementedError

    def step(self, x: Tensor, prediction: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """See above."""
        raise NotImplementedError
