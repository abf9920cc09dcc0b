"""One tensor for the optimizer where it may be: the updates and the state are those of each parameter by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer_core.adapters.flat import Flat
from trainer_core.config import TrainConfig
from trainer_core.training.flat_optimizer import ELEMENTWISE, FlatOptimizer
from trainer_core.training.optimizer_state import name_of
from trainer_core.training.optimizers import make_optimizer

SHAPES = ((3, 5), (16, 17), (7,), (64, 8), (1, 1), (3, 129))
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {},
    "AdamW": {"amsgrad": True},
    "Adamax": {},
    "NAdam": {"momentum_decay": 0.1},
    "RAdam": {},
    "RMSprop": {"centered": True, "momentum": 0.9},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adadelta": {},
    "ASGD": {"t0": 2.0},
    "lion": {},
}
REST = {"adafactor": {}, "prodigy": {}, "Adagrad": {}, "torch.optim.Adafactor": {}}


def config_of(name: str) -> TrainConfig:
    options = {**SETTINGS, **REST}.get(name, {})
    decay = 0.0 if name == "Rprop" else 0.1
    return TrainConfig(optimizer=name, optimizer_options=options, learning_rate=0.01, weight_decay=decay)


def parameters(matrices: bool = False) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=source) for shape in SHAPES]
    return [nn.Parameter(one) for one in drawn if not matrices or one.dim() == 2]


def gradients(weights: list[nn.Parameter], number: int, leave: int | None = None) -> list[Tensor | None]:
    """Of very different sizes; None for one that is left out."""
    source = torch.Generator().manual_seed(number)
    drawn = [torch.randn(one.shape, generator=source) * 10.0 ** (k - 4) for k, one in enumerate(weights)]
    return [None if k == leave else one for k, one in enumerate(drawn)]


class Ours:
    """Parameters in two buffers in another order than that of checkpoints."""

    def __init__(self, name: str, weights: list[nn.Parameter] | None = None) -> None:
        self.weights = weights or parameters()
        self.flats = [Flat(self.weights[3::-1]), Flat(self.weights[4:])]
        self.flat = FlatOptimizer(self.weights, self.flats, config_of(name))

    def step(self, number: int, leave: int | None = None, fine: Tensor | None = None) -> None:
        for flat in self.flats:
            flat.zero()
        for weight, gradient in zip(self.weights, gradients(self.weights, number, leave), strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        for flat in self.flats:
            flat.collect()
        self.flat.prepare()
        self.flat.step(fine)

    def everything(self) -> dict[str, Tensor]:
        tensors, values = self.flat.state_dict()
        weights = {f"weight {k}": one.detach().clone() for k, one in enumerate(self.weights)}
        return {**weights, **tensors, values: torch.zeros(())}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def by_parameter(name: str, steps: int, leave: int | None = None) -> dict[str, Tensor]:
    """As it was before there were buffers: the same optimizer with all parameters, those that are left out without
    gradient.

    Of an elementwise one, each lies in full vectors: torch's fused kernels round what is left over in another way.
    """
    drawn = parameters()
    weights = [nn.Parameter(_in_full_vectors(one.detach())) for one in drawn] if name in SETTINGS else drawn
    optimizer = make_optimizer(weights, config_of(name), weights[4:])
    for number in range(steps):
        for weight, gradient in zip(weights, gradients(drawn, number, leave), strict=True):
            weight.grad = gradient if gradient is None or name not in SETTINGS else _in_full_vectors(gradient)
        optimizer.step()

    def cut(value: Tensor, k: int) -> Tensor:
        return value[: drawn[k].numel()].view(drawn[k].shape) if name in SETTINGS and value.dim() else value

    return {f"weight {k}": cut(one.detach(), k) for k, one in enumerate(weights)} | {
        f"{k}.{name}": cut(value, k)
        for k, one in enumerate(weights)
        for name, value in optimizer.state.get(one, {}).items()
        if isinstance(value, Tensor)
    }


def _in_full_vectors(value: Tensor) -> Tensor:
    return F.pad(value.flatten(), (0, -value.numel() % 16))


@pytest.mark.parametrize("leave", [None, 2])
@pytest.mark.parametrize("name", [*SETTINGS, *REST])
def test_it_is_the_optimizer_of_each_parameter_bit_for_bit(name: str, leave: int | None) -> None:
    """Weights and state, by the checkpoint's names; what no gradient reaches is left alone."""
    ours = Ours(name)
    assert ours.flat.elementwise == (name in SETTINGS) == (name_of(type(ours.flat.optimizer)) in ELEMENTWISE)
    for number in range(6):
        ours.step(number, leave)
    tensors = {key: value for key, value in ours.everything().items() if not key.startswith("{")}
    assert same(tensors, by_parameter(name, 6, leave))
    if ours.flat.elementwise:
        runs = [len(group["params"]) for group in ours.flat.optimizer.param_groups]
        assert runs == ([1, 1] if leave is None else [2, 1])


@pytest.mark.parametrize("name", [*SETTINGS, *REST])
def test_the_state_of_a_run_from_before_goes_on(name: str) -> None:
    """It is loaded by parameter; one of them is left out so far, and joins later with a history of its own."""
    whole = Ours(name)
    for number in range(7):
        whole.step(number, 2 if number < 4 else None)
    first = Ours(name)
    for number in range(3):
        first.step(number, 2)
    second = Ours(name, [nn.Parameter(one.detach().clone()) for one in first.weights])
    second.flat.load_state_dict(*first.flat.state_dict())
    for number in range(3, 7):
        second.step(number, 2 if number < 4 else None)
    assert same(second.everything(), whole.everything())


@pytest.mark.parametrize("name", [*SETTINGS, "adafactor"])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_step_that_the_device_undoes_leaves_nothing(name: str, bad: int) -> None:
    """Step `bad` has a gradient that is not finite, and the host knows only after the next one, which is lost too."""
    ours, expected = Ours(name), Ours(name)
    fine = torch.tensor(True)
    for number in (one for one in range(5) if one != bad):
        expected.step(number)
    for number in range(bad):
        ours.step(number, fine=fine)
    ours.flats[0].collect()
    forget = ours.flat.remember()
    for flat in ours.flats:
        flat.gradient.fill_(torch.nan)
    ours.step(bad, fine=~fine)
    ours.step(bad + 1, fine=~fine)
    forget()
    for number in range(bad + 1, 5):
        ours.step(number, fine=fine)
    assert same(ours.everything(), expected.everything())


def test_torchs_fused_steps_are_undone_by_their_own_flag() -> None:
    """As on a GPU; torch has them for the CPU too."""
    one, other = (
        FlatOptimizer(weights, [Flat(weights)], TrainConfig(optimizer_options={"fused": True}))
        for weights in (parameters(), parameters())
    )
    for flat, bad in ((one, (1,)), (other, ())):
        for number in (0, 1, 2) if bad else (0, 2):
            for weight, gradient in zip(flat.parameters, gradients(flat.parameters, number), strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad.copy_(gradient)
            flat.flats[0].collect()
            flat.prepare()
            flat.step(torch.tensor(number not in bad))
    (tensors, _), (expected, _) = one.state_dict(), other.state_dict()
    assert same(tensors, expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))
