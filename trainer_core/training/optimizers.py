"""Optimizers by name, with those of the job's settings that they have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..config import TrainConfig
from ..config.train import OPTIMIZERS, UNUSABLE
from ..errors import ConfigError, did_you_mean, first_line

PACKAGES = {"adafactor": "transformers", "prodigy": "prodigyopt", "lion": "lion-pytorch", "adamw8bit": "bitsandbytes"}
"""Where the optimizers with short names come from; adamw is torch's own."""
_FROM_PACKAGES: dict[str, Callable[[], type[Optimizer]]] = {
    "adafactor": lambda: import_module("transformers.optimization").Adafactor,
    "prodigy": lambda: import_module("prodigyopt").Prodigy,
    "lion": lambda: import_module("lion_pytorch").Lion,
    "adamw8bit": lambda: import_module("bitsandbytes.optim").AdamW8bit,
}
_SET_ELSEWHERE = {"params": None, "lr": "train.learning_rate", "weight_decay": "train.weight_decay"}
_FAILURES = (ValueError, TypeError, AssertionError, AttributeError, RuntimeError, ImportError, OSError)
"""What optimizers raise for arguments and devices that they cannot work with."""


def make_optimizer(
    parameters: Sequence[nn.Parameter], config: TrainConfig, text_parameters: Sequence[nn.Parameter] = ()
) -> Optimizer:
    """The job's optimizer over the adapter's parameters.

    Those of `text_parameters` are in a group of their own, whose "ratio" is what `text_encoder_lr` is of
    `learning_rate`: whoever sets the learning rate of a step multiplies by it.

    - adamw: Loshchilov & Hutter 2019, torch's (fused);
    - adamw8bit: with moments of 8 bits, Dettmers et al. 2022, bitsandbytes';
    - adafactor: Shazeer & Stern 2018, transformers', with the job's learning rate instead of its relative steps;
    - prodigy: Mishchenko & Defazio 2024, the authors' own; lion: Chen et al. 2023, lion-pytorch's;
    - any other: the class of torch.optim of that name in any case. `torch.optim.` before it always means torch's.

    `weight_decay` is passed on where the optimizer has it, decoupled where it can be; `beta1`, `beta2` and `epsilon`
    where they are given (else the optimizer's own count: 0.99 for Lion's second moment). `optimizer_options` are
    checked against the optimizer's own arguments and win over all of these.

    Raises:
        ConfigError: for an unknown name or option, a setting that the optimizer has not got, a package that is not
            installed, or an optimizer that fails on the parameters' device.
    """
    check_optimizer(config, parameters[0].device)
    device = parameters[0].device
    if not text_parameters:
        return _construct(list(parameters), config, device)
    ratio = text_ratio(config)
    text = {id(parameter) for parameter in text_parameters}
    rest = [parameter for parameter in parameters if id(parameter) not in text]
    given = {"params": list(text_parameters), "lr": config.learning_rate * ratio, "ratio": ratio}
    return _construct([{"params": rest}, given], config, device)


def text_ratio(config: TrainConfig) -> float:
    """The text encoders' learning rate as a share of the denoiser's: a half, unless the job says another.

    Raises:
        ConfigError: for prodigy with two different rates, which it cannot have.
    """
    if config.optimizer == "prodigy":
        if config.text_encoder_lr not in (None, config.learning_rate):
            raise ConfigError("train.text_encoder_lr: prodigy has one rate for all parameters. Leave it empty")
        return 1.0
    return 0.5 if config.text_encoder_lr is None else config.text_encoder_lr / config.learning_rate


def check_optimizer(config: TrainConfig, device: torch.device | str = "cpu") -> None:
    """Tries one step on a throw-away matrix, large enough for 8-bit state, so that what cannot work fails early.

    Raises:
        ConfigError: as `make_optimizer` does.
    """
    trial = nn.Parameter(torch.ones(64, 64, device=device))
    trial.grad = torch.ones_like(trial)
    optimizer = _construct([trial], config, trial.device)
    with _failing_as(
        f"{config.optimizer} cannot train on {device} with these settings: {{}}. Choose another optimizer, such as "
        "adamw, or change train.optimizer_options"
    ):
        optimizer.step()


def is_fused(config: TrainConfig, device: torch.device) -> bool:
    """Whether the whole step is one kernel, which rounds in another order than one for each operation.

    SGD's fails where a parameter takes part later than others.
    """
    kinds = (torch.optim.Adam, torch.optim.AdamW)
    ways = {"fused", "foreach", "capturable", "differentiable"}
    known = device.type in ("cpu", "cuda") and _class_of(config.optimizer) in kinds
    return known and not ways & config.optimizer_options.keys()


@contextmanager
def _failing_as(message: str) -> Iterator[None]:
    """Puts what an optimizer complains of into a message, but for a lack of memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        raise ConfigError(f"train.optimizer: {message.replace('{}', first_line(error))}") from error


def _construct(parameters: list[Any], config: TrainConfig, device: torch.device) -> Optimizer:
    kind = _class_of(config.optimizer)
    arguments = _arguments(kind, config)
    if is_fused(config, device):
        arguments["fused"] = True
    # Prodigy prints a line whenever it is made with weight decay, also into ComfyUI's console: it gets it afterwards.
    afterwards = {"weight_decay": arguments.pop("weight_decay")} if config.optimizer == "prodigy" else {}
    told = ", ".join(f"{name}={value}" for name, value in arguments.items())
    with _failing_as(f"{kind.__name__} does not take these settings: {{}} (given: {told})"):
        optimizer = kind(parameters, **arguments)
    for group in optimizer.param_groups:
        group.update(afterwards)
    return optimizer


def _class_of(name: str) -> type[Optimizer]:
    """The class of a name; packages are imported only when they are asked for."""
    if name not in _FROM_PACKAGES:
        return _torch_class(name)
    try:
        return _FROM_PACKAGES[name]()
    except (ImportError, OSError, RuntimeError) as error:
        package = PACKAGES[name]
        raise ConfigError(
            f"train.optimizer: {name} needs the package {package}, which cannot be loaded here "
            f"({first_line(error)}). Install it with `pip install {package}`, or choose another optimizer, such as "
            "adamw"
        ) from error


def _torch_class(name: str) -> type[Optimizer]:
    classes = {
        kind.__name__.lower(): kind
        for kind in vars(torch.optim).values()
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    asked = name.removeprefix("torch.optim.").lower()
    if asked in UNUSABLE:
        raise ConfigError(
            f"train.optimizer: {name} cannot train here: {UNUSABLE[asked]}. Choose another, such as adamw"
        )
    if asked not in classes:
        short = set(OPTIMIZERS)
        known = [*sorted(short), *(classes[key].__name__ for key in sorted(classes.keys() - short - UNUSABLE.keys()))]
        raise ConfigError(f"train.optimizer: there is no optimizer {name!r}; {did_you_mean(asked, known)}")
    return classes[asked]


def _arguments(kind: type[Optimizer], config: TrainConfig) -> dict[str, Any]:
    """What the constructor gets, apart from the parameters."""
    own = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    arguments: dict[str, Any] = {"lr": config.learning_rate, **_from_settings(kind, own, config)}
    if "decoupled_weight_decay" in own and kind.__module__.startswith("torch."):  # Lion's of that name is another thing
        arguments["decoupled_weight_decay"] = True
    if {"scale_parameter", "relative_step"} <= own.keys():
        # Adafactor as it comes ignores the learning rate and its schedule, and hardly moves LoRA's zeros.
        arguments |= {"scale_parameter": False, "relative_step": False}
    options = [name for name in own if name not in _SET_ELSEWHERE]
    for name, value in config.optimizer_options.items():
        if _SET_ELSEWHERE.get(name):
            raise ConfigError(f"train.optimizer_options.{name}: is set by {_SET_ELSEWHERE[name]}")
        if name not in options:
            raise ConfigError(
                f"train.optimizer_options.{name}: unknown to {kind.__name__}; {did_you_mean(name, options)}"
            )
        arguments[name] = _plain(value)
    return arguments


def _plain(value: bool | int | float | str | list[float]) -> Any:
    """A pair for a list; a number for what YAML 1.1 takes for a text, such as 1e-6 (only 1.0e-6 is a number to it)."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _from_settings(kind: type[Optimizer], own: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Weight decay, and those of the moments and epsilon that the job sets."""
    given = {name: getattr(config, name) for name in ("beta1", "beta2", "epsilon")}
    given = {name: value for name, value in given.items() if value is not None}
    arguments: dict[str, Any] = {}
    if "weight_decay" in own:
        arguments["weight_decay"] = config.weight_decay
    elif config.weight_decay != TrainConfig.model_fields["weight_decay"].default and config.weight_decay:
        given["weight_decay"] = config.weight_decay  # the default is for those that have it; who asks for one is told
    if "betas" in own and {"beta1", "beta2"} & given.keys():
        beta1, beta2 = own["betas"]
        arguments["betas"] = (given.pop("beta1", beta1), given.pop("beta2", beta2))
    if "beta1" in own and "beta1" in given:
        arguments["beta1"] = given.pop("beta1")
    if isinstance(own.get("eps"), float) and "epsilon" in given:
        arguments["eps"] = given.pop("epsilon")
    if given:
        options = ", ".join(name for name in own if name not in _SET_ELSEWHERE)
        raise ConfigError(
            "\n".join(
                f"train.{name}: {kind.__name__} has no such setting: leave it out. It has, in "
                f"train.optimizer_options: {options}"
                for name in given
            )
        )
    return arguments


def effective_rate(optimizer: Optimizer) -> float:
    """The learning rate of the last update; Prodigy multiplies the one it is given by its own estimate."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))
