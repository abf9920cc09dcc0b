"""An optimizer's whole state goes through a file: interrupted training ends where the other does, bit for bit."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer_core.adapters.flat import Flat
from trainer_core.config import TrainConfig
from trainer_core.errors import RunError
from trainer_core.safetensors_file import read_header, read_tensors, serialize
from trainer_core.training.flat_optimizer import FlatOptimizer
from trainer_core.training.lr_schedules import learning_rate

SHAPES = ((3, 4), (64, 80), (5, 3))
OURS = ["adamw", "adamw8bit", "adafactor", "prodigy", "lion"]
TORCHS = [
    f"torch.optim.{name}"
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and name not in {"Optimizer", "LBFGS", "SparseAdam"}
]
WITH_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("adamw", {"amsgrad": True, "foreach": False}),
    ("adafactor", {"beta1": 0.9}),
    ("prodigy", {"safeguard_warmup": True, "use_bias_correction": True, "d0": 1e-3, "growth_rate": 1.5}),
    ("sgd", {"momentum": 0.9, "dampening": 0.1}),
    ("rmsprop", {"centered": True, "momentum": 0.5}),
    ("adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("asgd", {"t0": 3.0, "lambd": 0.01}),
]


def parameters() -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=source) for shape in SHAPES]
    return [nn.Parameter(drawn[0]), nn.Parameter(drawn[1]), nn.Parameter(torch.zeros(SHAPES[2]))]


def config_of(name: str, options: dict[str, Any]) -> TrainConfig:
    """A rate that changes in every step, so that it must not come from the state."""
    rate = 1.0 if name == "prodigy" else 0.01
    return TrainConfig(
        optimizer=name, optimizer_options=options, learning_rate=rate, steps=12, warmup_steps=3, lr_scheduler="cosine"
    )


def made(weights: list[nn.Parameter], config: TrainConfig) -> FlatOptimizer:
    return FlatOptimizer(weights, [Flat(weights)], config)


def take_steps(optimizer: FlatOptimizer, config: TrainConfig, numbers: range) -> None:
    """As the loop does: the gradient pulls all weights to 1, with noise that follows from the step."""
    for number in numbers:
        source = torch.Generator().manual_seed(number)
        for group in optimizer.optimizer.param_groups:
            group["lr"] = learning_rate(number, config)
        for weight in optimizer.parameters:
            gradient = weight.detach() - 1 + torch.randn(weight.shape, generator=source)
            weight.grad = gradient if weight.grad is None else weight.grad.copy_(gradient)
        optimizer.flats[0].collect()
        optimizer.prepare()
        optimizer.step()


def through_a_file(optimizer: FlatOptimizer, path: Path) -> tuple[dict[str, Tensor], str]:
    tensors, values = optimizer.state_dict()
    path.write_bytes(serialize(tensors, {"optimizer": values}))
    return read_tensors(path), read_header(path)["__metadata__"]["optimizer"]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in [*OURS, *TORCHS]), *WITH_OPTIONS])
def test_resumed_training_is_the_straight_one_bit_for_bit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    config = config_of(name, options)
    whole = made(parameters(), config)
    take_steps(whole, config, range(10))

    first = made(parameters(), config)
    take_steps(first, config, range(5))
    weights = [nn.Parameter(p.detach().clone()) for p in first.parameters]
    second = made(weights, config)
    second.load_state_dict(*through_a_file(first, tmp_path / "state.safetensors"))
    take_steps(second, config, range(5, 10))

    for one, other in zip(whole.parameters, weights, strict=True):
        assert torch.equal(one, other)
    (expected, expected_values), (tensors, values) = whole.state_dict(), second.state_dict()
    assert values == expected_values
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())
    assert all(tensors[key].dtype == value.dtype for key, value in expected.items())


@pytest.mark.parametrize("name", ["adamw", "adafactor", "prodigy", "lion"])
def test_forgetting_the_state_would_show(name: str) -> None:
    """That the test above can fail: without the state, the second half goes elsewhere."""
    config = config_of(name, {})
    whole = made(parameters(), config)
    take_steps(whole, config, range(5))
    second = made([nn.Parameter(p.detach().clone()) for p in whole.parameters], config)
    take_steps(whole, config, range(5, 10))
    take_steps(second, config, range(5, 10))
    assert not torch.equal(whole.parameters[0], second.parameters[0])


def test_prodigys_estimate_is_part_of_the_state() -> None:
    config = config_of("prodigy", {"d0": 1e-3})
    old = made(parameters(), config)
    take_steps(old, config, range(8))
    _, values = old.state_dict()
    saved = json.loads(values)["values"]
    assert saved["group.0.d"] == old.optimizer.param_groups[0]["d"] > 1e-3
    assert saved["group.0.k"] == 8
    assert {"group.0.d_max", "group.0.d_numerator"} <= saved.keys()
    assert not {"group.0.lr", "group.0.weight_decay", "group.0.betas", "group.0.d0"} & saved.keys()


def test_loaded_state_keeps_the_jobs_settings() -> None:
    before = TrainConfig(learning_rate=0.01, weight_decay=0.5, beta1=0.5)
    old = made(parameters(), before)
    take_steps(old, before, range(2))
    new = made(parameters(), TrainConfig(learning_rate=0.02, weight_decay=0.0))
    new.load_state_dict(*old.state_dict())
    group = new.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.02, 0.0, (0.9, 0.999))


@pytest.mark.parametrize("name", OURS)
def test_state_is_a_copy(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    config = config_of(name, {})
    optimizer = made(parameters(), config)
    take_steps(optimizer, config, range(2))
    tensors, values = optimizer.state_dict()
    kept = copy.deepcopy(tensors)
    other = made(parameters(), config)
    other.load_state_dict(tensors, values)
    take_steps(optimizer, config, range(2, 4))
    take_steps(other, config, range(2, 4))
    assert kept
    assert all(torch.equal(tensors[key], value) for key, value in kept.items())


def test_state_of_a_new_optimizer_is_empty() -> None:
    tensors, values = made(parameters(), TrainConfig()).state_dict()
    assert tensors == {}
    other = made(parameters(), TrainConfig())
    other.load_state_dict(tensors, values)
    assert not other.optimizer.state


@pytest.mark.parametrize(
    ("old", "new"),
    [("adamw", "lion"), ("lion", "prodigy"), ("adamw", "adam"), ("adafactor", "torch.optim.Adafactor")],
)
def test_state_of_another_optimizer_is_refused(old: str, new: str) -> None:
    config = config_of(old, {})
    before = made(parameters(), config)
    take_steps(before, config, range(2))
    after = made(parameters(), config_of(new, {}))
    with pytest.raises(RunError, match=r"trained with the optimizer .*train\.optimizer asks for .*set it back"):
        after.load_state_dict(*before.state_dict())
    assert not after.optimizer.state


def test_state_of_more_parameters_is_refused() -> None:
    config = config_of("adamw", {})
    before = made(parameters(), config)
    take_steps(before, config, range(2))
    after = made(parameters()[:2], config)
    with pytest.raises(RunError, match="more than this adapter's 2 parameters"):
        after.load_state_dict(*before.state_dict())
    assert not after.optimizer.state
