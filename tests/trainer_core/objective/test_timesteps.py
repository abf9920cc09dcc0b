"""The distributions of training times, against distribution functions that are derived or integrated independently."""

from __future__ import annotations

import math
from itertools import pairwise, product

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer_core.errors import ConfigError
from trainer_core.objective.ddpm import DdpmSchedule
from trainer_core.objective.flow import FlowSchedule
from trainer_core.objective.timesteps import (
    BIASES,
    FAR,
    TIMESTEP_TYPES,
    NoiseStages,
    TimestepSampler,
    biased,
    time_weight,
)

DRAWS = 200_000
SHIFT = 3.0
SCHEDULE, TOKENS = FlowSchedule(shift=SHIFT), 16
SPREAD = tuple(kind for kind in TIMESTEP_TYPES if kind != "one_step")
LIMITS = ((0.0, 1.0), (0.0, 0.4), (0.25, 0.75), (0.875, 1.0), (0.3, 0.31))
STEEP = FlowSchedule.from_scheduler_config({"use_dynamic_shifting": True})


def draws(count: int = DRAWS, seed: int = 5) -> Tensor:
    """Uniform numbers as fine as those of training, in float64 so that limits can be told from their neighbours."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def density(kind: str, t: Tensor) -> Tensor:
    """Of the times without bias and limits, by its definition and not by a quantile function."""
    if kind == "sigmoid":  # of 1 / (1 + exp(-n)), n standard normal
        return torch.exp(-(t.logit() ** 2) / 2) / (math.sqrt(2 * math.pi) * t * (1 - t))
    if kind == "shift":  # t = s u / (1 + (s - 1) u), so du/dt = s / (s - (s - 1) t)²
        return SHIFT / (SHIFT - (SHIFT - 1) * t) ** 2
    return torch.ones_like(t)


def integrated(kind: str, low: float, high: float) -> tuple[Tensor, Tensor]:
    """A grid of [low, high] and the share of the times within these limits that is below each of its points."""
    edges = torch.linspace(low, high, 20_001, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    below = torch.cat([torch.zeros(1), density(kind, middles).cumsum(0)]).double()
    return edges, below / below[-1]


def unbiased(level: Tensor, bias: str) -> Tensor:
    """The inverse of a bias: P(b(u) < level)."""
    if bias == "high_noise":
        return 1 - (1 - level) ** (1 / 3)
    return level ** (1 / 3) if bias == "low_noise" else level


def interpolated(x: Tensor, grid: Tensor, values: Tensor) -> Tensor:
    place = torch.searchsorted(grid, x.contiguous()).clamp(1, len(grid) - 1)
    share = (x - grid[place - 1]) / (grid[place] - grid[place - 1])
    return values[place - 1] + share * (values[place] - values[place - 1])


def kolmogorov_smirnov(times: Tensor, below: Tensor) -> float:
    """√n times the largest distance between the share of the draws below a time and what it should be.

    Above 2.7 by chance once in a million (Kolmogorov's distribution: 2 exp(-2 · 2.7²)).
    """
    count = len(times)
    ranks = torch.arange(count + 1, dtype=torch.float64) / count
    assert bool((times.diff() >= 0).all()), "times must be sorted"
    return max((ranks[1:] - below).max().item(), (below - ranks[:-1]).max().item()) * math.sqrt(count)


def sampled(sampler: TimestepSampler, uniform: Tensor | None = None) -> Tensor:
    return sampler.times(draws() if uniform is None else uniform, SCHEDULE, TOKENS)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("kind", SPREAD)
def test_the_distribution(kind: str, bias: str, limits: tuple[float, float]) -> None:
    """Kolmogorov-Smirnov over 200,000 draws against the density above, cut to the limits, integrated, biased."""
    times = sampled(TimestepSampler(kind, bias, *limits)).sort().values
    expected = unbiased(interpolated(times, *integrated(kind, *limits)), bias)
    assert kolmogorov_smirnov(times, expected) < 2.7


def test_the_test_of_distributions_can_fail() -> None:
    """Times of one type against the density of another, or with another bias, are far beyond the bound."""
    times = sampled(TimestepSampler("sigmoid")).sort().values
    assert kolmogorov_smirnov(times, interpolated(times, *integrated("linear", 0, 1))) > 10
    times = sampled(TimestepSampler("linear", "high_noise", 0.25, 0.75)).sort().values
    assert kolmogorov_smirnov(times, interpolated(times, *integrated("linear", 0.25, 0.75))) > 10


@pytest.mark.parametrize("kind", SPREAD)
@pytest.mark.parametrize("limits", [(0.0, 0.4), (0.25, 0.75), (0.875, 1.0)], ids=str)
def test_limits_condition_and_do_not_squeeze(kind: str, limits: tuple[float, float]) -> None:
    """Draws with limits are spread like those draws without limits that fall inside (a two-sample test)."""
    low, high = limits
    free = sampled(TimestepSampler(kind), draws(1_000_000, seed=1))
    inside = free[(free >= low) & (free <= high)].sort().values
    cut = sampled(TimestepSampler(kind, "balanced", low, high), draws(len(inside), seed=2)).sort().values
    both = torch.cat([inside, cut]).sort().values
    shares = [torch.searchsorted(one, both, right=True).double() / len(one) for one in (inside, cut)]
    assert len(inside) > 20_000
    assert (shares[0] - shares[1]).abs().max().item() * math.sqrt(len(inside) / 2) < 2.7


def mean_of(kind: str, bias: str, low: float, high: float) -> float | None:
    """The mean in closed form, where there is a short one."""
    share = {"balanced": 1 / 2, "high_noise": 3 / 4, "low_noise": 1 / 4}[bias]
    if kind in ("linear", "weighted"):
        return low + share * (high - low)
    if kind == "shift" and bias == "balanced" and (low, high) == (0, 1):
        # ∫ s u / (1 + (s - 1) u) du
        return SHIFT / (SHIFT - 1) - SHIFT * math.log(SHIFT) / (SHIFT - 1) ** 2
    if kind == "sigmoid" and bias == "balanced" and low == 1 - high:
        return 1 / 2
    return None


CLOSED_FORMS = [case for case in product(SPREAD, BIASES, LIMITS) if mean_of(case[0], case[1], *case[2]) is not None]


@pytest.mark.parametrize(("kind", "bias", "limits"), CLOSED_FORMS, ids=str)
def test_the_mean(kind: str, bias: str, limits: tuple[float, float]) -> None:
    expected = mean_of(kind, bias, *limits)
    times = sampled(TimestepSampler(kind, bias, *limits), draws(400_000, seed=8))
    assert times.mean().item() == pytest.approx(expected, abs=4.5 * times.std().item() / math.sqrt(len(times)))


@pytest.mark.parametrize(("bias", "variance"), [("balanced", 1 / 12), ("high_noise", 9 / 112), ("low_noise", 9 / 112)])
def test_the_variance_of_linear_times(bias: str, variance: float) -> None:
    """E[u⁶] - E[u³]² = 1/7 - 1/16 = 9/112."""
    assert sampled(TimestepSampler("linear", bias)).var().item() == pytest.approx(variance, rel=0.01)


def test_sigmoid_is_a_squashed_normal() -> None:
    """The logits have mean 0, variance 1, no skew and a kurtosis of 3."""
    logits = sampled(TimestepSampler("sigmoid")).logit()
    error = 1 / math.sqrt(DRAWS)
    assert logits.mean().item() == pytest.approx(0, abs=4.5 * error)
    assert logits.var().item() == pytest.approx(1, abs=4.5 * math.sqrt(2) * error)
    assert logits.pow(3).mean().item() == pytest.approx(0, abs=4.5 * math.sqrt(15) * error)
    assert logits.pow(4).mean().item() == pytest.approx(3, abs=4.5 * math.sqrt(96) * error)


def test_biases_mirror_each_other() -> None:
    """With a distribution that is its own mirror image, high_noise is low_noise seen from the other end."""
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    for kind in ("linear", "sigmoid"):
        high, low = (sampled(TimestepSampler(kind, bias), u) for bias in ("high_noise", "low_noise"))
        torch.testing.assert_close(high, 1 - low.flip(0))
    assert (biased(u, "high_noise") > u).all()
    assert (biased(u, "low_noise") < u).all()


@pytest.mark.parametrize("tokens", [16, 256, 4096, 9999])
def test_shift_visits_what_the_sampler_visits(tokens: int) -> None:
    """Equal parts of u are the steps of the schedule's own sampler, at every size."""
    steps = 50
    u = torch.arange(steps + 1, dtype=torch.float64).flip(0) / steps
    times = TimestepSampler("shift").times(u, STEEP, tokens)
    torch.testing.assert_close(times.float(), STEEP.sampling_times(steps, tokens), atol=1e-6, rtol=1e-6)


# --- ends and limits -------------------------------------------------------------------------------------------------

ENDS = [0.0, 1e-300, 1e-16, 1e-7, 0.1, 0.5, 0.9, 1 - 2**-24, 1 - 2**-53, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("kind", TIMESTEP_TYPES)
def test_times_grow_with_the_draw_and_bear_its_ends(
    kind: str, bias: str, limits: tuple[float, float], dtype: torch.dtype
) -> None:
    times = sampled(TimestepSampler(kind, bias, *limits), torch.tensor(ENDS, dtype=dtype))
    assert times.dtype == dtype
    assert times.isfinite().all()
    assert (times.diff() >= -1e-15).all()
    lowest, highest = torch.tensor(limits, dtype=dtype)
    assert lowest <= times.min() <= times.max() <= highest
    assert times[-1].item() == pytest.approx(highest.item(), rel=1e-12), "the draw's ends are the limits"
    assert times[0].item() == pytest.approx((highest if kind == "one_step" else lowest).item(), rel=1e-12)


@given(
    st.sampled_from(TIMESTEP_TYPES),
    st.sampled_from(BIASES),
    st.floats(0, 0.999),
    st.floats(1e-3, 1),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
    st.sampled_from([0.2, 1.0, 3.0, 12.0]),
)
def test_limits_are_never_left(kind: str, bias: str, low: float, width: float, u: list[float], shift: float) -> None:
    high = min(1.0, low + width)
    uniform = torch.tensor(sorted(u), dtype=torch.float64)
    times = TimestepSampler(kind, bias, low, high).times(uniform, FlowSchedule(shift=shift), TOKENS)
    assert times.isfinite().all()
    assert times.min() >= low
    assert times.max() <= high
    assert (times.diff() >= -1e-15).all()


@pytest.mark.parametrize("kind", SPREAD)
def test_the_middle_of_tight_limits_is_inside_them(kind: str) -> None:
    """Far out in the tails the distribution function is flat: the draws must not all fall on one limit."""
    for low, high in ((0.0, 1e-3), (1 - 1e-3, 1.0), (0.5, 0.5 + 1e-9)):
        (middle,) = sampled(TimestepSampler(kind, "balanced", low, high), torch.tensor([0.5], dtype=torch.float64))
        assert low < middle < high, (low, high)


TAILS = [(0.0, 2e-4), (1e-5, 2e-4), (0.0, 1e-17), (1e-300, 1e-299), (0.005, 0.0050001)]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("low", "high"), TAILS)
def test_sigmoid_between_limits_near_an_end(low: float, high: float, bias: str) -> None:
    """F(t) is F(low) + b(u) (F(high) - F(low)) with 400 digits, F the logit-normal distribution; at both ends alike."""
    uniform = torch.tensor([2**-24, 0.1, 0.5, 0.999, 1 - 2**-24], dtype=torch.float64)
    times = sampled(TimestepSampler("sigmoid", bias, low, high), uniform)
    with mpmath.workdps(400):
        bottom, top = (mpmath.ncdf(_logit(limit)) if limit else mpmath.mpf(0) for limit in (low, high))
        for u, t in zip(uniform.tolist(), times.tolist(), strict=True):
            level = {"balanced": u, "high_noise": 1 - (1 - mpmath.mpf(u)) ** 3, "low_noise": mpmath.mpf(u) ** 3}[bias]
            wanted = bottom + level * (top - bottom)
            # F may be 1e-200000: it is its logarithm that says how far off t is, d log F / d log t being about -logit t
            off = mpmath.log(mpmath.ncdf(_logit(t)) / wanted) / -_logit(t)
            assert abs(off) < 1e-11, (u, t)


def _logit(t: float) -> mpmath.mpf:
    return mpmath.log(mpmath.mpf(t) / (1 - mpmath.mpf(t)))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("near", [2e-4, 1e-6, 0.009])
def test_sigmoid_limits_near_one_mirror_those_near_zero(near: float, bias: str) -> None:
    u = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mirrored = {"balanced": "balanced", "high_noise": "low_noise", "low_noise": "high_noise"}[bias]
    top = sampled(TimestepSampler("sigmoid", bias, 1 - near, 1.0), u)
    bottom = sampled(TimestepSampler("sigmoid", mirrored, 0.0, 1 - (1 - near)), 1 - u)
    assert top.unique().numel() == 1000
    torch.testing.assert_close(1 - top, bottom, rtol=1e-9, atol=2e-16)


def test_both_formulas_agree_where_they_meet() -> None:
    u = torch.linspace(0.001, 0.999, 999)
    for low, high in ((0.002, FAR), (0.0, FAR), (1 - FAR, 1.0), (1 - FAR, 0.998)):
        tail = sampled(TimestepSampler("sigmoid", "balanced", low, high), u)
        ends = torch.special.ndtr(torch.tensor([low, high]).double().logit())
        plain = torch.special.ndtri(ends[0] + u.double() * (ends[1] - ends[0])).sigmoid().float()
        torch.testing.assert_close(tail, plain, rtol=3e-7, atol=0)


def test_one_step_trains_the_upper_limit_alone() -> None:
    assert sampled(TimestepSampler("one_step", "low_noise")).unique().tolist() == [1.0]
    assert sampled(TimestepSampler("one_step", high=0.6)).unique().tolist() == [0.6]


def test_within_only_narrows() -> None:
    sampler = TimestepSampler("sigmoid", "low_noise", 0.2, 0.8)
    assert sampler.within(0.0, 1.0) == sampler
    assert sampler.within(0.5, 1.0) == TimestepSampler("sigmoid", "low_noise", 0.5, 0.8)
    assert sampler.within(0.0, 0.5) == TimestepSampler("sigmoid", "low_noise", 0.2, 0.5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("bell",), "bell"),
        (("linear", "content"), "content"),
        (("linear", "balanced", 0.5, 0.5), "0.5"),
        (("linear", "balanced", 0.7, 0.2), "0.7"),
        (("linear", "balanced", -0.1, 1.0), "-0.1"),
        (("linear", "balanced", 0.0, 1.1), "1.1"),
        (("linear", "balanced", math.nan, 1.0), "nan"),
    ],
)
def test_what_cannot_be_drawn_is_named(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TimestepSampler(*arguments)


def test_shift_needs_a_schedule_with_one() -> None:
    with pytest.raises(ConfigError, match="shift"):
        TimestepSampler("shift").times(torch.tensor([0.5]), DdpmSchedule(), TOKENS)
    assert TimestepSampler("sigmoid").times(torch.tensor([0.5]), DdpmSchedule(), TOKENS).item() == pytest.approx(0.5)


# --- the weighted type -----------------------------------------------------------------------------------------------


def test_the_weights_have_mean_one() -> None:
    """By Simpson's rule over 2,000 parts, and over draws of the type itself."""
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    simpson = torch.ones(2001, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    sampler = TimestepSampler("weighted")
    weights = sampler.weight(grid)
    assert (weights * simpson).sum().item() / 6000 == pytest.approx(1, abs=1e-5)
    drawn = sampler.weight(sampled(sampler))
    assert drawn.mean().item() == pytest.approx(1, abs=4.5 * drawn.std().item() / math.sqrt(DRAWS))


def test_the_weights_are_a_floor_and_a_density() -> None:
    """What is above the value at the ends is a multiple of a Beta density, as torch has it."""
    from trainer_core.objective.timesteps import WEIGHT_A, WEIGHT_B, WEIGHT_FLOOR

    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    beta = torch.distributions.Beta(WEIGHT_A, WEIGHT_B).log_prob(t).exp()
    torch.testing.assert_close(time_weight(t), WEIGHT_FLOOR + (1 - WEIGHT_FLOOR) * beta.double(), rtol=1e-5, atol=1e-6)
    ends = time_weight(torch.tensor([0.0, 1.0]))
    assert ends.isfinite().all()
    assert (ends >= 0).all()


@pytest.mark.parametrize("kind", [kind for kind in TIMESTEP_TYPES if kind != "weighted"])
def test_other_types_weigh_all_times_alike(kind: str) -> None:
    assert TimestepSampler(kind).weight(torch.linspace(0, 1, 11)).tolist() == [1.0] * 11


# --- stages ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 0.99), max_size=7, unique=True))
def test_stages_cover_everything_once(boundaries: list[float]) -> None:
    stages = NoiseStages(tuple(sorted(boundaries, reverse=True)))
    limits = [stages.limits(k) for k in range(len(boundaries) + 1)]
    assert limits[0][1] == 1
    assert limits[-1][0] == 0
    assert all(low < high for low, high in limits)
    assert all(one[0] == next_one[1] for one, next_one in pairwise(limits)), "the noisiest first, end on end"


def test_stages_change_with_the_optimizer_step() -> None:
    two = NoiseStages((0.875,))
    assert [two.stage(step) for step in range(6)] == [0, 1, 0, 1, 0, 1]
    slow = NoiseStages((0.8, 0.4), switch_every=3)
    assert [slow.stage(step) for step in range(12)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert NoiseStages().stage(7) == 0
    assert NoiseStages().limits(0) == (0.0, 1.0)


def test_one_stage_may_be_chosen() -> None:
    for steps in range(5):
        assert NoiseStages((0.875, 0.3), "high_noise").stage(steps) == 0
        assert NoiseStages((0.875, 0.3), "low_noise").stage(steps) == 2
    assert NoiseStages((0.875, 0.3)).limits(1) == (0.3, 0.875)


def test_stages_together_draw_what_one_stage_draws() -> None:
    """Mixed by each stage's share of the probability, the stages' draws are the whole distribution again."""
    stages = NoiseStages((0.8, 0.4))
    sampler = TimestepSampler("sigmoid")
    grid, below = integrated("sigmoid", 0, 1)
    parts = []
    for stage in range(3):
        low, high = stages.limits(stage)
        ends = interpolated(torch.tensor([low, high], dtype=torch.float64), grid, below)
        count = round((ends[1] - ends[0]).item() * DRAWS)
        parts.append(sampled(sampler.within(low, high), draws(count, seed=stage)))
    times = torch.cat(parts).sort().values
    assert kolmogorov_smirnov(times, interpolated(times, grid, below)) < 2.7
