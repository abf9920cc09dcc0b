"""What the trainer and the sampler need to know of a noise schedule, be it flow matching or DDPM.

Times t lie in [0, 1], 1 being (nearly) pure noise, for every schedule; a family turns them into what its denoiser
reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Schedule(ABC):
    """A noise schedule and what the denoiser predicts under it."""

    @property
    @abstractmethod
    def prediction(self) -> str:
        """What the denoiser predicts: `flow` (ε - x_0), `epsilon` or `v_prediction`."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noisy latents x_t for clean latents and noise (N, ...) at times t (N,)."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should predict, in the layout of the latents."""

    @abstractmethod
    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio (N,): the squared ratio of the factors of x_0 and of the noise in x_t."""

    @abstractmethod
    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Weight (N,) of the squared error of this schedule's prediction, after Hang et al. 2023."""

    @abstractmethod
    def shift_for(self, tokens: int) -> float:
        """How much a picture of so many image tokens moves times towards noise; 1 is not at all.

        Raises:
            ConfigError: if the schedule has no shift.
        """

    @property
    def fixed_shift(self) -> float | None:
        """The shift, where it is the same for pictures of all sizes; None where it is not, or where there is none."""
        return None

    @abstractmethod
    def sampling_times(self, steps: int, tokens: int) -> Tensor:
        """The `steps` + 1 falling times (fp32) of a sampler for a picture of so many image tokens; the last is 0."""

    @abstractmethod
    def step(self, x: Tensor, prediction: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """One step of the sampler: x (N, ...) at time `here` moved to the next time, along the denoiser's prediction.

        `here` and `there` are neighbours in `sampling_times`, without dimensions, on the device of x.
        """


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) shaped to multiply a tensor (N, ...), in its precision."""
    return values.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)
