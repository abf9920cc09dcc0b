"""Text encoders' parameters in a group of their own: another learning rate, the same exact state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer_core.adapters.flat import Flat
from trainer_core.config import TrainConfig
from trainer_core.errors import ConfigError
from trainer_core.training.flat_optimizer import FlatOptimizer
from trainer_core.training.optimizers import make_optimizer, text_ratio


def parameters() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(the denoiser's, the text encoders')"""
    source = torch.Generator().manual_seed(0)
    drawn = [nn.Parameter(torch.randn(3, 4, generator=source)) for _ in range(5)]
    return drawn[:3], drawn[3:]


def take_steps(optimizer: torch.optim.Optimizer, numbers: range, rate: float | None = None) -> None:
    """As the loop does: each group's rate is the step's times its ratio."""
    for number in numbers:
        source = torch.Generator().manual_seed(number)
        for group in optimizer.param_groups:
            if rate is not None:
                group["lr"] = rate * group.get("ratio", 1.0)
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=source)
        optimizer.step()


@pytest.mark.parametrize(("given", "ratio"), [(None, 0.5), (1e-3, 1.0), (1e-4, 0.1), (2e-3, 2.0)])
def test_the_ratio_is_that_of_the_rates(given: float | None, ratio: float) -> None:
    unet, text = parameters()
    config = TrainConfig(learning_rate=1e-3, text_encoder_lr=given)
    optimizer = make_optimizer([*unet, *text], config, text)
    first, second = optimizer.param_groups
    assert [id(p) for p in first["params"]] == [id(p) for p in unet]
    assert [id(p) for p in second["params"]] == [id(p) for p in text]
    assert (first["lr"], second["lr"]) == (1e-3, pytest.approx(ratio * 1e-3))
    assert "ratio" not in first
    assert second["ratio"] == pytest.approx(ratio)


def test_it_is_two_optimizers_with_their_own_rates() -> None:
    unet, text = parameters()
    both = make_optimizer([*unet, *text], TrainConfig(learning_rate=0.1, text_encoder_lr=0.02), text)
    take_steps(both, range(4), rate=0.1)
    mine = [p.detach().clone() for p in (*unet, *text)]
    unet, text = parameters()
    groups = [{"params": unet, "lr": 0.1}, {"params": text, "lr": 0.02}]
    take_steps(torch.optim.AdamW(groups, weight_decay=TrainConfig().weight_decay, fused=True), range(4))
    assert all(torch.equal(a, b.detach()) for a, b in zip(mine, (*unet, *text), strict=True))


def test_without_text_encoders_there_is_one_group() -> None:
    unet, _ = parameters()
    (group,) = make_optimizer(unet, TrainConfig()).param_groups
    assert "ratio" not in group


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "prodigy"])
def test_the_rates_are_the_jobs_and_not_state(name: str) -> None:
    config = TrainConfig(optimizer=name, learning_rate=1.0 if name == "prodigy" else 1e-2)
    unet, text = parameters()
    optimizer = FlatOptimizer([*unet, *text], [Flat(unet), Flat(text)], config)
    assert "ratio" in optimizer.optimizer.param_groups[1]
    assert "ratio" not in optimizer.state_dict()[1]


def test_prodigy_has_one_rate() -> None:
    assert text_ratio(TrainConfig(optimizer="prodigy", learning_rate=1.0)) == 1.0
    unet, text = parameters()
    config = TrainConfig(optimizer="prodigy", learning_rate=1.0, text_encoder_lr=0.5)
    with pytest.raises(ConfigError, match="text_encoder_lr"):
        make_optimizer([*unet, *text], config, text)
