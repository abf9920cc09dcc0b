"""Learning rates against torch's schedulers, AdamW's state through a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from trainer_core.config import TrainConfig
from trainer_core.training.optimizers import learning_rate, load_optimizer, make_optimizer, optimizer_tensors

AFTER: dict[str, Callable[[Any, int], LRScheduler]] = {
    "constant": lambda optimizer, steps: ConstantLR(optimizer, 1.0, steps),
    "linear": lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.0, steps),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
}


@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize("steps", [1, 2, 10, 57])
def test_rates_are_those_of_torch(kind: str, steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = AFTER[kind](optimizer, steps)
    config = TrainConfig(steps=steps, learning_rate=0.3, lr_scheduler=kind)
    for step in range(steps):
        assert learning_rate(step, config) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        optimizer.step()
        scheduler.step()


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


def test_rates_by_hand() -> None:
    linear = TrainConfig(steps=4, learning_rate=1.0, lr_scheduler="linear")
    assert [learning_rate(step, linear) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = TrainConfig(steps=4, learning_rate=1.0, lr_scheduler="cosine")
    expected = [1.0, 0.8535534, 0.5, 0.1464466, 0.0]
    assert [learning_rate(step, cosine) for step in range(5)] == pytest.approx(expected, abs=1e-7)
    warm = TrainConfig(steps=8, learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(step, warm) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_run_that_is_all_warmup() -> None:
    config = TrainConfig(steps=4, learning_rate=1.0, warmup_steps=4, lr_scheduler="cosine")
    assert [learning_rate(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


# --- AdamW -----------------------------------------------------------------------------------------------------------


def parameters() -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in ((3, 4), (5,))]


def steps(optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        source = torch.Generator().manual_seed(number)
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=source)
        optimizer.step()


def test_adamw_by_hand() -> None:
    """Loshchilov & Hutter, algorithm 2, written out in double precision over five steps."""
    config = TrainConfig(learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1)
    ours = parameters()
    w = [p.detach().double().clone() for p in ours]
    m, v = [torch.zeros_like(p) for p in w], [torch.zeros_like(p) for p in w]
    optimizer = make_optimizer(ours, config)
    for t in range(1, 6):
        source = torch.Generator().manual_seed(t)
        for k in range(2):
            g = torch.randn(ours[k].shape, generator=source).double()
            w[k] *= 1 - 0.01 * 0.1
            m[k] = 0.8 * m[k] + 0.2 * g
            v[k] = 0.95 * v[k] + 0.05 * g * g
            w[k] -= 0.01 * (m[k] / (1 - 0.8**t)) / ((v[k] / (1 - 0.95**t)).sqrt() + 1e-6)
        steps(optimizer, range(t, t + 1))
    for k in range(2):
        torch.testing.assert_close(ours[k].detach().double(), w[k], rtol=1e-5, atol=1e-6)


def test_state_round_trip_goes_on_bit_for_bit() -> None:
    config = TrainConfig(learning_rate=0.01)
    straight, first = parameters(), parameters()
    steps(make_optimizer(straight, config), range(10))
    before = make_optimizer(first, config)
    steps(before, range(6))
    tensors, values = optimizer_tensors(before)
    assert isinstance(values, str)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    after = make_optimizer(second, config)
    load_optimizer(after, tensors, values)
    steps(after, range(6, 10))
    for one, other in zip(straight, second, strict=True):
        assert torch.equal(one, other)


def test_state_is_a_copy() -> None:
    optimizer = make_optimizer(parameters(), TrainConfig())
    steps(optimizer, range(2))
    tensors, _ = optimizer_tensors(optimizer)
    kept = copy.deepcopy(tensors)
    steps(optimizer, range(2, 4))
    assert kept
    assert all(torch.equal(tensors[name], value) for name, value in kept.items())


def test_loaded_state_keeps_the_jobs_settings() -> None:
    old = make_optimizer(parameters(), TrainConfig(learning_rate=0.01, weight_decay=0.5))
    steps(old, range(2))
    new = make_optimizer(parameters(), TrainConfig(learning_rate=0.02, weight_decay=0.0))
    load_optimizer(new, *optimizer_tensors(old))
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (0.02, 0.0)


def test_state_of_a_new_optimizer_is_empty() -> None:
    new = make_optimizer(parameters(), TrainConfig())
    tensors: dict[str, Tensor]
    tensors, values = optimizer_tensors(new)
    assert tensors == {}
    load_optimizer(make_optimizer(parameters(), TrainConfig()), tensors, values)
