"""Optimizers against hand-written formulas and their libraries; which settings reach them, and what is refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from lion_pytorch import Lion
from prodigyopt import Prodigy
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from trainer_core.config import TrainConfig
from trainer_core.errors import ConfigError
from trainer_core.training.optimizers import check_optimizer, make_optimizer

SHAPES = ((3, 4), (64, 80), (5, 3))
"""As LoRA's: matrices only, the last one zeros; the middle one is large enough for 8-bit state."""
GOALS = [torch.randn(shape, generator=torch.Generator().manual_seed(99)) for shape in SHAPES]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=source) for shape in SHAPES[:2]]
    return [nn.Parameter(value.to(dtype)) for value in [*drawn, torch.zeros(SHAPES[2])]]


def gradients(weights: list[Tensor], number: int) -> list[Tensor]:
    """Those of half the squared distance to the goals, with the noise of a step."""
    source = torch.Generator().manual_seed(number)
    return [w - goal + 0.1 * torch.randn(w.shape, generator=source) for w, goal in zip(weights, GOALS, strict=True)]


def take_steps(optimizer: Optimizer, numbers: range) -> None:
    weights = optimizer.param_groups[0]["params"]
    for number in numbers:
        for weight, gradient in zip(weights, gradients([w.detach() for w in weights], number), strict=True):
            weight.grad = gradient
        optimizer.step()


def assert_follows(config: TrainConfig, update: Callable[[list[Tensor], list[Tensor]], None], steps: int) -> Optimizer:
    """The optimizer and the update rule, both in double precision, walk the same way."""
    optimizer = make_optimizer(parameters(torch.float64), config)
    take_steps(optimizer, range(steps))
    weights = [p.detach() for p in parameters(torch.float64)]
    for number in range(steps):
        update(weights, gradients(weights, number))
    for ours, theirs in zip(optimizer.param_groups[0]["params"], weights, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-7, atol=1e-9)
    return optimizer


def assert_same(ours: Optimizer, theirs: Optimizer) -> None:
    groups = zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)
    assert all(torch.equal(one, other) for one, other in groups)


# --- formulas --------------------------------------------------------------------------------------------------------


def test_adamw_by_hand() -> None:
    """Loshchilov & Hutter, algorithm 2."""
    config = TrainConfig(learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1)
    m, v = [torch.zeros(s).double() for s in SHAPES], [torch.zeros(s).double() for s in SHAPES]
    t = 0

    def update(w: list[Tensor], g: list[Tensor]) -> None:
        nonlocal t
        t += 1
        for k in range(3):
            w[k] *= 1 - 0.01 * 0.1
            m[k] = 0.8 * m[k] + 0.2 * g[k]
            v[k] = 0.95 * v[k] + 0.05 * g[k] * g[k]
            w[k] -= 0.01 * (m[k] / (1 - 0.8**t)) / ((v[k] / (1 - 0.95**t)).sqrt() + 1e-6)

    assert_follows(config, update, 8)


def test_lion_by_hand() -> None:
    """Chen et al. 2023, algorithm 2, with its own second decay, 0.99, since the job leaves beta2 as it is."""
    config = TrainConfig(optimizer="lion", learning_rate=0.01, weight_decay=0.1)
    m = [torch.zeros(s).double() for s in SHAPES]

    def update(w: list[Tensor], g: list[Tensor]) -> None:
        for k in range(3):
            w[k] *= 1 - 0.01 * 0.1
            w[k] -= 0.01 * (0.9 * m[k] + 0.1 * g[k]).sign()
            m[k] = 0.99 * m[k] + 0.01 * g[k]

    assert_follows(config, update, 8)


def test_adafactor_by_hand() -> None:
    """Shazeer & Stern 2018, algorithm 4, with a fixed step size and no scaling by the parameter."""
    config = TrainConfig(optimizer="adafactor", learning_rate=0.01, weight_decay=0.1)
    row, column = [torch.zeros(s[0]).double() for s in SHAPES], [torch.zeros(s[1]).double() for s in SHAPES]
    t = 0

    def update(w: list[Tensor], g: list[Tensor]) -> None:
        nonlocal t
        t += 1
        decay = 1 - t**-0.8
        for k in range(3):
            square = g[k] ** 2 + 1e-30
            row[k] = decay * row[k] + (1 - decay) * square.mean(1)
            column[k] = decay * column[k] + (1 - decay) * square.mean(0)
            change = g[k] / torch.outer(row[k], column[k]).div(row[k].mean()).sqrt()
            change /= max(1.0, float(change.square().mean().sqrt()))
            w[k] *= 1 - 0.01 * 0.1
            w[k] -= 0.01 * change

    assert_follows(config, update, 8)


def test_prodigy_by_hand() -> None:
    """Mishchenko & Defazio 2024, algorithm 4, over enough steps for its estimate of the distance to grow."""
    options = {"d0": 1e-3}
    config = TrainConfig(optimizer="prodigy", learning_rate=1.0, weight_decay=0.01, optimizer_options=options)
    start = [p.detach().double() for p in parameters()]
    m, v, s = ([torch.zeros(shape).double() for shape in SHAPES] for _ in range(3))
    d, r, beta3 = 1e-3, 0.0, math.sqrt(0.999)

    def update(w: list[Tensor], g: list[Tensor]) -> None:
        nonlocal d, r
        before = d
        r = beta3 * r + sum(float(before * before * (g[k] * (start[k] - w[k])).sum()) for k in range(3))
        for k in range(3):
            m[k] = 0.9 * m[k] + 0.1 * before * g[k]
            v[k] = 0.999 * v[k] + 0.001 * before**2 * g[k] ** 2
            s[k] = beta3 * s[k] + before**2 * g[k]
        d = max(d, r / sum(float(s[k].abs().sum()) for k in range(3)))
        for k in range(3):
            w[k] -= 0.01 * before * w[k]
            w[k] -= before * m[k] / (v[k].sqrt() + d * 1e-8)

    optimizer = assert_follows(config, update, 12)
    assert d > 2e-3, "the estimate has grown, so that its formula counts"
    assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-9)


def test_adamw8bit_follows_adamw() -> None:
    """Moments of 8 bits: the first step is AdamW's, and over 20 it strays by less than 2 % of the way."""
    pytest.importorskip("bitsandbytes")
    config = TrainConfig(learning_rate=0.01, weight_decay=0.1)
    ours, exact = make_optimizer(parameters(), config.but(optimizer="adamw8bit")), make_optimizer(parameters(), config)
    mine, theirs, start = (ours.param_groups[0]["params"][1], exact.param_groups[0]["params"][1], parameters()[1])
    take_steps(ours, range(1))
    take_steps(exact, range(1))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    take_steps(ours, range(1, 20))
    take_steps(exact, range(1, 20))
    with torch.no_grad():
        assert (mine - theirs).abs().mean() < 0.02 * (theirs - start).abs().mean()
    assert ours.state[mine]["state1"].dtype == ours.state[mine]["state2"].dtype == torch.uint8


def test_adafactor_moves_lora_zeros() -> None:
    """As it comes, with steps relative to the parameter, it moves zeros by a thousandth of the learning rate."""
    optimizer = make_optimizer(parameters(), TrainConfig(optimizer="adafactor", learning_rate=0.01))
    take_steps(optimizer, range(1))
    assert float(optimizer.param_groups[0]["params"][2].detach().abs().mean()) == pytest.approx(0.01, rel=0.5)


# --- libraries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.02, fused=True)),
        ("torch.optim.AdamW", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.02, fused=True)),
        ("adafactor", lambda p: Adafactor(p, 0.01, weight_decay=0.02, scale_parameter=False, relative_step=False)),
        ("torch.optim.Adafactor", lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.02)),
        ("prodigy", lambda p: Prodigy(p, lr=0.01, weight_decay=0.02)),
        ("lion", lambda p: Lion(p, lr=0.01, weight_decay=0.02)),
        ("Adam", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.02, fused=True)),  # its decay is decoupled
        ("RADAM", lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.02, decoupled_weight_decay=True)),
        ("nadam", lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.02, decoupled_weight_decay=True)),
        ("adamax", lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.02)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.02)),
        ("torch.optim.rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.02)),
        ("rprop", lambda p: torch.optim.Rprop(p, lr=0.01)),
    ],
)
def test_name_means_the_class_with_the_jobs_settings(
    name: str, library: Callable[[list[nn.Parameter]], Optimizer]
) -> None:
    decay = {} if name == "rprop" else {"weight_decay": 0.02}
    ours = make_optimizer(parameters(), TrainConfig(optimizer=name, learning_rate=0.01, **decay))
    theirs = library(parameters())
    take_steps(ours, range(5))
    take_steps(theirs, range(5))
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "library"),
    [
        ({"optimizer": "lion", "beta1": 0.95}, lambda p: Lion(p, lr=0.01, betas=(0.95, 0.99))),
        ({"optimizer": "lion", "beta2": 0.98}, lambda p: Lion(p, lr=0.01, betas=(0.9, 0.98))),
        (
            {"optimizer": "lion", "optimizer_options": {"betas": [0.9, 0.999]}},
            lambda p: Lion(p, lr=0.01, betas=(0.9, 0.999)),
        ),
        (
            {"optimizer": "prodigy", "beta2": 0.99, "epsilon": 1e-6, "optimizer_options": {"d_coef": 2.0, "d0": 1e-4}},
            lambda p: Prodigy(p, lr=0.01, betas=(0.9, 0.99), eps=1e-6, d_coef=2.0, d0=1e-4),
        ),
        (
            {
                "optimizer": "adafactor",
                "beta1": 0.8,
                "optimizer_options": {"clip_threshold": 0.5, "eps": [1e-20, 1e-3]},
            },
            lambda p: Adafactor(
                p, 0.01, (1e-20, 1e-3), clip_threshold=0.5, beta1=0.8, scale_parameter=False, relative_step=False
            ),
        ),
        (
            {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9, "nesterov": True}},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        ),
        (
            {"optimizer": "adam", "optimizer_options": {"amsgrad": True}, "epsilon": 1e-3},
            lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-3, amsgrad=True, fused=True),
        ),
    ],
)
def test_changed_settings_and_options_reach_the_class(
    settings: dict[str, Any], library: Callable[[list[nn.Parameter]], Optimizer]
) -> None:
    ours = make_optimizer(parameters(), TrainConfig(learning_rate=0.01, weight_decay=0, **settings))
    theirs = library(parameters())
    take_steps(ours, range(5))
    take_steps(theirs, range(5))
    assert_same(ours, theirs)


def test_torchs_adam_can_have_its_own_weight_decay() -> None:
    config = TrainConfig(
        optimizer="adam",
        learning_rate=0.01,
        weight_decay=0.5,
        optimizer_options={"decoupled_weight_decay": False},
    )
    ours = make_optimizer(parameters(), config)
    theirs = torch.optim.Adam(parameters(), lr=0.01, weight_decay=0.5, fused=True)
    take_steps(ours, range(5))
    take_steps(theirs, range(5))
    assert_same(ours, theirs)


def test_options_that_yaml_reads_as_text_are_numbers() -> None:
    """PyYAML follows YAML 1.1, where `1e-3` is a text and `1.0e-3` a number."""
    options = yaml.safe_load("{eps: 1e-3, amsgrad: true}")
    assert options["eps"] == "1e-3"
    ours = make_optimizer(parameters(), TrainConfig(learning_rate=0.01, weight_decay=0, optimizer_options=options))
    theirs = torch.optim.AdamW(parameters(), lr=0.01, weight_decay=0, eps=0.001, amsgrad=True, fused=True)
    take_steps(ours, range(5))
    take_steps(theirs, range(5))
    assert_same(ours, theirs)


def test_making_prodigy_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    make_optimizer(parameters(), TrainConfig(optimizer="prodigy", weight_decay=0.1))
    assert capsys.readouterr().out == ""


def test_trying_leaves_the_parameters_alone() -> None:
    weights = parameters()
    make_optimizer(weights, TrainConfig())
    assert all(torch.equal(one, other) for one, other in zip(weights, parameters(), strict=True))
    assert all(weight.grad is None for weight in weights)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optimizer": "lioon"}, r"^train\.optimizer: there is no optimizer 'lioon'; did you mean `lion`\?$"),
        ({"optimizer": "adamw8bits"}, r"did you mean `adamw8bit`\?$"),
        ({"optimizer": "radm"}, r"did you mean `RAdam`\?$"),
        ({"optimizer": "zzz"}, r"known here: adafactor, adamw, adamw8bit, lion, prodigy, .*SGD$"),
        ({"optimizer": "torch.optim.Lion"}, r"there is no optimizer 'torch\.optim\.Lion'"),
        ({"optimizer": "Optimizer"}, r"there is no optimizer 'Optimizer'"),
        ({"optimizer_options": {"amsgard": True}}, r"^train\.optimizer_options\.amsgard: .*did you mean `amsgrad`\?$"),
        ({"optimizer_options": {"qqqqq": 1}}, r"unknown to AdamW; known here: betas, eps, amsgrad"),
        ({"optimizer_options": {"lr": 1.0}}, r"^train\.optimizer_options\.lr: is set by train\.learning_rate$"),
        ({"optimizer_options": {"weight_decay": 1.0}}, r"is set by train\.weight_decay$"),
        ({"optimizer_options": {"params": 1}}, r"^train\.optimizer_options\.params: unknown to AdamW"),
        (
            {"optimizer_options": {"betas": [0.9, 1.5]}},
            r"^train\.optimizer: AdamW does not take .*betas=\(0\.9, 1\.5\)",
        ),
        ({"optimizer_options": {"betas": 1.0}}, r"^train\.optimizer: AdamW does not take"),
        ({"optimizer_options": {"differentiable": True}}, r"^train\.optimizer: adamw cannot train on cpu"),
        (
            {"optimizer": "adafactor", "optimizer_options": {"relative_step": True}},
            r"^train\.optimizer: Adafactor does",
        ),
        ({"optimizer": "adafactor", "epsilon": 1e-6}, r"^train\.epsilon: Adafactor has no such setting.* eps,"),
        (
            {"optimizer": "sgd", "beta1": 0.5, "beta2": 0.5},
            r"(?s)^train\.beta1: SGD has.*momentum.*\ntrain\.beta2: SGD",
        ),
        ({"optimizer": "rprop", "weight_decay": 0.5}, r"^train\.weight_decay: Rprop has no such setting"),
    ],
)
def test_what_cannot_work_is_refused_in_one_message(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_optimizer(TrainConfig(**settings))


@pytest.mark.parametrize("name", ["lbfgs", "torch.optim.sparseadam"])
def test_optimizers_that_need_another_loop_are_refused(name: str) -> None:
    """Whatever wrote the job: `model_construct` skips the config's own check."""
    config = TrainConfig().model_copy(update={"optimizer": name})
    with pytest.raises(ConfigError, match=r"cannot train here: it (evaluates the loss|needs sparse)"):
        check_optimizer(config)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("adamw8bit", "bitsandbytes", "bitsandbytes"),
        ("prodigy", "prodigyopt", "prodigyopt"),
        ("lion", "lion_pytorch", "lion-pytorch"),
    ],
)
def test_missing_package_is_named(name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [one for one in sys.modules if one.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*`pip install {package}`.*adamw"):
        check_optimizer(TrainConfig(optimizer=name))


def test_device_that_the_optimizer_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def step(_: Optimizer) -> None:
        raise NotImplementedError("no 8-bit kernel for this device.\nSee the list of devices")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", step)
    with pytest.raises(
        ConfigError, match=r"adamw8bit cannot train on cpu .*: no 8-bit kernel for this device\. Choose"
    ):
        make_optimizer(parameters(), TrainConfig(optimizer="adamw8bit"))
