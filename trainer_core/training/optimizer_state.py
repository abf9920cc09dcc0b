"""An optimizer's whole state as tensors and JSON, so that a resumed run goes on bit for bit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import RunError

State = dict[str, Any]
"""What an optimizer keeps of one parameter, or of a group: tensors and numbers by name."""


def optimizer_tensors(optimizer: Optimizer, states: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], str]:
    """An optimizer's state as named tensors (copies on the CPU), and the rest of it as JSON.

    Names are `<parameter>.<name>` for the state of a parameter by index, and `group.<group>.<name>` for what the
    optimizer itself keeps in a parameter group, such as Prodigy's estimate of the step size. A group's settings are
    not state: they are the job's.

    Args:
        states: of each parameter; empty for those that took part in no step.
    """
    state = dict(_entries(optimizer, states))
    tensors = {key: one.detach().to("cpu", copy=True) for key, one in state.items() if isinstance(one, Tensor)}
    values = {key: one for key, one in state.items() if key not in tensors}
    return tensors, json.dumps({"optimizer": name_of(type(optimizer)), "values": values}, sort_keys=True)


def read_state(
    optimizer: Optimizer, count: int, tensors: Mapping[str, Tensor], values: str
) -> tuple[list[State], dict[int, State]]:
    """The inverse of `optimizer_tensors`: the states of `count` parameters, and those of groups by number.

    Raises:
        RunError: if the state is another optimizer's, or of more parameters.
    """
    saved = json.loads(values)
    own = name_of(type(optimizer))
    if saved["optimizer"] != own:
        raise RunError(
            f"the checkpoint was trained with the optimizer {saved['optimizer']}, and train.optimizer asks for {own}: "
            "set it back, or begin a new run from the LoRA with adapter.warm_start"
        )
    states: dict[int, State] = {}
    groups: dict[int, State] = {}
    for key, value in [*tensors.items(), *saved["values"].items()]:
        kept, name = (groups, key.removeprefix("group.")) if key.startswith("group.") else (states, key)
        index, name = name.split(".", 1)
        kept.setdefault(int(index), {})[name] = value
    if max(states, default=-1) >= count or max(groups, default=-1) >= len(optimizer.param_groups):
        raise RunError(f"the checkpoint's optimizer state is of more than this adapter's {count} parameters")
    return [states.get(index, {}) for index in range(count)], groups


def _entries(optimizer: Optimizer, states: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Everything that steps change."""
    settings = {"params", "ratio", *inspect.signature(type(optimizer)).parameters}
    for number, group in enumerate(optimizer.param_groups):
        yield from ((f"group.{number}.{name}", value) for name, value in group.items() if name not in settings)
    for index, state in enumerate(states):
        yield from ((f"{index}.{name}", value) for name, value in state.items())


def name_of(kind: type[Optimizer]) -> str:
    """Such as torch.AdamW; there is a torch.Adafactor and a transformers.Adafactor, and their states differ."""
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}"


def device_of(name: str, group: Mapping[str, Any], parameter: nn.Parameter) -> torch.device:
    """torch keeps its step counters on the CPU unless the whole step runs on the device."""
    on_device = name != "step" or group.get("capturable") or group.get("fused")
    return parameter.device if on_device else torch.device("cpu")
