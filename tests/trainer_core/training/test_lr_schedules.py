"""Learning rates against torch's and transformers' schedulers, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers import get_scheduler

from trainer_core.config import TrainConfig
from trainer_core.training.lr_schedules import learning_rate

KINDS = ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
AFTER: dict[str, Callable[[Any, int], LRScheduler]] = {
    "constant": lambda optimizer, steps: ConstantLR(optimizer, 1.0, steps),
    "linear": lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.0, steps),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
}


def rates_of(scheduler: Callable[[torch.optim.Optimizer], LRScheduler], steps: int, rate: float) -> list[float]:
    """The rates that a reference scheduler gives to the updates, and what it leaves after the last."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    reference = scheduler(optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        reference.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize("steps", [1, 2, 10, 57])
def test_rates_are_those_of_torch(kind: str, steps: int) -> None:
    config = TrainConfig(steps=steps, learning_rate=0.3, lr_scheduler=kind)
    expected = rates_of(lambda optimizer: AFTER[kind](optimizer, steps), steps, 0.3)
    assert [learning_rate(step, config) for step in range(steps + 1)] == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize(("warmup", "steps"), [(1, 5), (4, 20), (10, 30)])
def test_rates_after_a_warmup_are_those_of_torch(kind: str, warmup: int, steps: int) -> None:
    """torch's warm-up starts at its factor: 1/warmup here, as ours."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    rise = LinearLR(optimizer, 1 / warmup, 1.0, max(1, warmup - 1)) if warmup > 1 else ConstantLR(optimizer, 1.0, 1)
    scheduler = SequentialLR(optimizer, [rise, AFTER[kind](optimizer, steps - warmup)], [warmup])
    config = TrainConfig(steps=steps, learning_rate=0.3, lr_scheduler=kind, warmup_steps=warmup)
    for step in range(steps):
        assert learning_rate(step, config) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-5, abs=1e-12)
        optimizer.step()
        scheduler.step()


TRANSFORMERS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("constant", {}, "constant_with_warmup", {}),
    ("linear", {}, "linear", {}),
    ("cosine", {}, "cosine", {}),
    ("cosine", {"lr_final_share": 0.25}, "cosine_with_min_lr", {"min_lr_rate": 0.25}),
    ("cosine_with_restarts", {"lr_cycles": 1}, "cosine_with_restarts", {"num_cycles": 1}),
    ("cosine_with_restarts", {"lr_cycles": 4}, "cosine_with_restarts", {"num_cycles": 4}),
    ("polynomial", {"lr_power": 1.0}, "polynomial", {"lr_end": 0.0, "power": 1.0}),
    ("polynomial", {"lr_power": 2.0}, "polynomial", {"lr_end": 0.0, "power": 2.0}),
    ("polynomial", {"lr_power": 0.5, "lr_final_share": 0.1}, "polynomial", {"lr_end": 0.03, "power": 0.5}),
]


@pytest.mark.parametrize(("kind", "settings", "reference", "arguments"), TRANSFORMERS)
@pytest.mark.parametrize(("warmup", "steps"), [(0, 64), (16, 80), (64, 128)])
def test_rates_are_those_of_transformers(
    kind: str, settings: dict[str, Any], reference: str, arguments: dict[str, Any], warmup: int, steps: int
) -> None:
    """Their warm-up gives the first update nothing at all: it is ours one step later, and ends at the same rate."""
    config = TrainConfig(steps=steps, learning_rate=0.3, lr_scheduler=kind, warmup_steps=warmup, **settings)
    ours = [learning_rate(step, config) for step in range(steps + 1)]
    theirs = rates_of(
        lambda optimizer: get_scheduler(reference, optimizer, warmup, steps, scheduler_specific_kwargs=arguments),
        steps,
        0.3,
    )
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-9, abs=1e-12)
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], rel=1e-9, abs=1e-12)


def test_rates_by_hand() -> None:
    linear = TrainConfig(steps=4, learning_rate=1.0, lr_scheduler="linear")
    assert [learning_rate(step, linear) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = TrainConfig(steps=4, learning_rate=1.0, lr_scheduler="cosine")
    expected = [1.0, 0.8535534, 0.5, 0.1464466, 0.0]
    assert [learning_rate(step, cosine) for step in range(5)] == pytest.approx(expected, abs=1e-7)
    warm = TrainConfig(steps=8, learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(step, warm) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    share = TrainConfig(steps=4, learning_rate=1.0, lr_scheduler="linear", lr_final_share=0.2)
    assert [learning_rate(step, share) for step in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    square = TrainConfig(steps=4, learning_rate=1.0, lr_scheduler="polynomial", lr_power=2)
    assert [learning_rate(step, square) for step in range(5)] == [1.0, 0.5625, 0.25, 0.0625, 0.0]


def test_restarts_come_on_time_where_a_cycle_is_no_binary_fraction() -> None:
    """Steps 3, 6, 9 begin a fall of 3 steps; 3 / 9 · 3 is not 1 in every order of floating-point operations."""
    config = TrainConfig(steps=12, learning_rate=1.0, lr_scheduler="cosine_with_restarts", lr_cycles=4)
    assert [learning_rate(step, config) for step in range(13)] == pytest.approx([1.0, 0.75, 0.25] * 4 + [0.0])
    for cycles in range(1, 50):
        long = TrainConfig(
            steps=7 * cycles, learning_rate=1.0, lr_scheduler="cosine_with_restarts", lr_cycles=cycles, lr_final_share=0
        )
        assert [learning_rate(7 * k, long) for k in range(cycles)] == [1.0] * cycles


def test_a_run_that_is_all_warmup() -> None:
    config = TrainConfig(steps=4, learning_rate=1.0, warmup_steps=4, lr_scheduler="cosine")
    assert [learning_rate(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 500),
    share=st.floats(0, 1),
    power=st.floats(0.1, 10),
    cycles=st.integers(1, 9),
    data=st.data(),
)
def test_rates_stay_between_the_final_and_the_full_rate(
    kind: str, steps: int, share: float, power: float, cycles: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps))
    config = TrainConfig(
        steps=steps,
        learning_rate=1.0,
        lr_scheduler=kind,
        lr_final_share=share,
        lr_power=power,
        lr_cycles=cycles,
        warmup_steps=warmup,
    )
    rates = [learning_rate(step, config) for step in range(steps + 3)]
    assert all(0 < rate <= 1 for rate in rates[:warmup])
    assert all(share - 1e-12 <= rate <= 1 + 1e-12 for rate in rates[warmup:])
    if kind != "constant":
        assert rates[steps:] == pytest.approx([share] * 3 if steps > warmup else [1.0] + [share] * 2)
    if kind in ("linear", "cosine", "polynomial"):
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
