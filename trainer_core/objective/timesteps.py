"""Which noise levels are trained: a distribution of times in [0, 1], as a function of one uniform draw.

t = Q(F(low) + b(u) · (F(high) - F(low))): u uniform in [0, 1), Q the quantile function of the timestep type and F its
inverse, b the bias. So limits cut a type's distribution off and leave its shape inside them as it is, the bias works
inside the limits (each of several stages has the whole of it), and a draw needs no table and no rejection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import shifted
from .schedule import Schedule

TIMESTEP_TYPES = ("sigmoid", "linear", "weighted", "shift", "one_step")
BIASES = ("balanced", "high_noise", "low_noise")


@dataclass(frozen=True)
class TimestepSampler:
    """A distribution of times.

    `sigmoid`: logit-normal(0, 1) (Esser et al. 2024). `linear`: uniform. `weighted`: uniform, with the loss weight of
    `time_weight`. `shift`: the times that the model's own sampler visits. `one_step`: the upper limit alone.
    """

    kind: str = "linear"
    bias: str = "balanced"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in TIMESTEP_TYPES:
            raise ValueError(f"no such timestep type: {self.kind!r}; there are {', '.join(TIMESTEP_TYPES)}")
        if self.bias not in BIASES:
            raise ValueError(f"no such bias: {self.bias!r}; there are {', '.join(BIASES)}")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"limits must satisfy 0 <= low < high <= 1: {self.low}, {self.high}")

    def within(self, low: float, high: float) -> TimestepSampler:
        """The same with limits that are at least as narrow."""
        return TimestepSampler(self.kind, self.bias, max(low, self.low), min(high, self.high))

    def check(self, schedule: Schedule) -> None:
        """Whether the type goes with a schedule.

        Raises:
            ConfigError: for `shift` where the schedule has none.
        """
        self.times(torch.full((1,), 0.5), schedule, 1)

    def times(self, uniform: Tensor, schedule: Schedule, tokens: int) -> Tensor:
        """Times (N,) for uniform draws (N,) in [0, 1), for pictures of so many image tokens; in the draws' precision.

        Raises:
            ConfigError: for `shift` where the schedule has none.
        """
        if self.kind == "one_step":
            return torch.full_like(uniform, self.high)
        if self.kind == "sigmoid" and self.high <= FAR:
            t = lower_tail(biased(uniform.double(), self.bias), self.low, self.high)
            return t.clamp(self.low, self.high).to(uniform.dtype)
        if self.kind == "sigmoid" and self.low >= 1 - FAR:  # the same seen from the other end, with 1 - t for t
            level = biased(1 - uniform.double(), _MIRRORED[self.bias])
            t = 1 - lower_tail(level, 1 - self.high, 1 - self.low)
            return t.clamp(self.low, self.high).to(uniform.dtype)
        quantile, distribution = self._functions(schedule, tokens)
        ends = distribution(torch.tensor([self.low, self.high], dtype=torch.float64))
        level = biased(uniform.double(), self.bias)
        t = quantile(ends[0] + level * (ends[1] - ends[0]))
        return t.clamp(self.low, self.high).to(uniform.dtype)

    def weight(self, t: Tensor) -> Tensor:
        """Loss weight (N,) of times."""
        return time_weight(t) if self.kind == "weighted" else torch.ones_like(t)

    def _functions(self, schedule: Schedule, tokens: int) -> tuple[_Function, _Function]:
        """The type's quantile function and its inverse, the distribution function."""
        if self.kind == "sigmoid":
            # ndtri(0) is -inf: sigmoid takes it to t = 0, where nothing is left to learn, but nothing breaks either
            return (lambda u: torch.sigmoid(torch.special.ndtri(u))), (lambda t: torch.special.ndtr(torch.logit(t)))
        if self.kind == "shift":
            shift = schedule.shift_for(tokens)
            return (lambda u: shifted(u, shift)), (lambda t: shifted(t, 1 / shift))
        return (lambda u: u), (lambda t: t)


_Function = Callable[[Tensor], Tensor]

FAR = 0.01
"""Limits that are both this near to 0 or to 1 are drawn between by `lower_tail`; double precision does for others."""
_MIRRORED = {"balanced": "balanced", "high_noise": "low_noise", "low_noise": "high_noise"}
"""Bias → that of 1 - t: 1 - b(u) is the mirrored bias of 1 - u."""


def lower_tail(level: Tensor, low: float, high: float) -> Tensor:
    """Logit-normal times between limits near 0, at quantile levels (N,) of what lies between them; double precision.

    F(t) = Φ(logit t) is 1e-17 at t = 2e-4 and no number at all from t = 2e-17 on, and torch's `ndtr` is 0 below 1e-16.
    So it is its logarithm that is interpolated, and inverted: Newton's method on log Φ, which is concave and rises,
    starts left of the solution at -√(-2 log F) and so comes to it from the left, with twice the digits each time.
    """
    ends = torch.special.log_ndtr(torch.logit(torch.tensor([low, high], dtype=torch.float64)))
    ratio = (ends[0] - ends[1]).exp()
    wanted = (ends[1] + (ratio + level * (1 - ratio)).log()).clamp_min(_LEAST_LOG)
    z = -(-2 * wanted).sqrt()
    for _ in range(_NEWTON_STEPS):
        log_cdf = torch.special.log_ndtr(z)
        slope = (-(z.square()) / 2 - math.log(2 * math.pi) / 2 - log_cdf).exp()
        z = z + (wanted - log_cdf) / slope
    return torch.sigmoid(z)


_LEAST_LOG = -1e6
"""Of F where the level is 0 and nothing limits the time: it becomes t = 0, as any F below this would."""
_NEWTON_STEPS = 8
"""Six are enough for all digits from t = 0.01 down to 1e-300."""


def biased(uniform: Tensor, bias: str) -> Tensor:
    """Quantile levels: u for `balanced`, 1 - (1 - u)³ for `high_noise`, u³ for `low_noise`, as the reference has it.

    So with `linear` times the mean is 1/2, 3/4 or 1/4.
    """
    if bias == "high_noise":
        return 1 - (1 - uniform) ** 3
    return uniform**3 if bias == "low_noise" else uniform


WEIGHT_FLOOR, WEIGHT_A, WEIGHT_B = 0.1, 2.25, 1.75
"""See `time_weight`; measured by benchmarks/timestep_weights.py."""


def time_weight(t: Tensor) -> Tensor:
    """Loss weight of the `weighted` timestep type: f + (1 - f) · Beta(a, b)(t), which has mean 1 over [0, 1].

    The curve follows what a LoRA has to learn at each noise level: by how much training lowers the loss there, measured
    on the embedded base (benchmarks/timestep_weights.py) and fitted with a Beta density over a floor.
    """
    constant = math.lgamma(WEIGHT_A + WEIGHT_B) - math.lgamma(WEIGHT_A) - math.lgamma(WEIGHT_B)
    density = math.exp(constant) * t ** (WEIGHT_A - 1) * (1 - t) ** (WEIGHT_B - 1)
    return WEIGHT_FLOOR + (1 - WEIGHT_FLOOR) * density


@dataclass(frozen=True)
class NoiseStages:
    """Training split by noise level, for models with an expert for each (Wan 2.2) and for experiments with one.

    Stage 0 is the noisiest. Each optimizer step trains one stage with all its micro-batches.
    """

    boundaries: tuple[float, ...] = ()
    """Falling, between 0 and 1."""
    chosen: str = "all"
    """all, high_noise (stage 0 alone) or low_noise (the last alone)"""
    switch_every: int = 1
    """Optimizer steps before the next stage takes over."""

    def stage(self, step: int) -> int:
        """The stage of the update that follows `step` updates."""
        if self.chosen == "high_noise":
            return 0
        if self.chosen == "low_noise":
            return len(self.boundaries)
        return (step // self.switch_every) % (len(self.boundaries) + 1)

    def limits(self, stage: int) -> tuple[float, float]:
        """Lowest and highest time of a stage."""
        edges = (1.0, *self.boundaries, 0.0)
        return edges[stage + 1], edges[stage]
