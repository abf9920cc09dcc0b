"""An optimizer's whole state as tensors and JSON, so that a resumed run goes on bit for bit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import RunError


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], str]:
    """An optimizer's state as named tensors (copies on the CPU), and the rest of it as JSON.

    Names are `<parameter>.<name>` for the state of a parameter by index, and `group.<group>.<name>` for what the
    optimizer itself keeps in a parameter group, such as Prodigy's estimate of the step size. A group's settings are
    not state: they are the job's.
    """
    state = dict(_entries(optimizer))
    tensors = {key: one.detach().to("cpu", copy=True) for key, one in state.items() if isinstance(one, Tensor)}
    values = {key: one for key, one in state.items() if key not in tensors}
    return tensors, json.dumps({"optimizer": _name_of(optimizer), "values": values}, sort_keys=True)


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], values: str) -> None:
    """The inverse of `optimizer_tensors`, bit for bit; parameter groups keep the settings that they have.

    Raises:
        RunError: if the state is another optimizer's, or of other parameters; nothing is changed then.
    """
    saved = json.loads(values)
    own = _name_of(optimizer)
    if saved["optimizer"] != own:
        raise RunError(
            f"the checkpoint was trained with the optimizer {saved['optimizer']}, and train.optimizer asks for {own}: "
            "set it back, or begin a new run from the LoRA with adapter.warm_start"
        )
    places = [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *saved["values"].items()]:
        kept, name = (groups, key.removeprefix("group.")) if key.startswith("group.") else (state, key)
        index, name = name.split(".", 1)
        kept.setdefault(int(index), {})[name] = value
    if max(state, default=-1) >= len(places) or max(groups, default=-1) >= len(optimizer.param_groups):
        raise RunError(f"the checkpoint's optimizer state is of more than this adapter's {len(places)} parameters")
    # Written directly, since Optimizer.load_state_dict casts what it loads to the parameter's precision.
    for index, entry in state.items():
        group, parameter = places[index]
        optimizer.state[parameter] = {
            name: value.to(_device_of(name, group, parameter), copy=True) if isinstance(value, Tensor) else value
            for name, value in entry.items()
        }
    for index, entry in groups.items():
        optimizer.param_groups[index].update(entry)


def _entries(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """Everything that steps change."""
    settings = {"params", "ratio", *inspect.signature(type(optimizer)).parameters}
    index = 0
    for number, group in enumerate(optimizer.param_groups):
        yield from ((f"group.{number}.{name}", value) for name, value in group.items() if name not in settings)
        for parameter in group["params"]:
            # not `optimizer.state[parameter]`, which would make an entry that says that a step was made
            yield from ((f"{index}.{name}", value) for name, value in optimizer.state.get(parameter, {}).items())
            index += 1


def _name_of(optimizer: Optimizer) -> str:
    """Such as torch.AdamW; there is a torch.Adafactor and a transformers.Adafactor, and their states differ."""
    kind = type(optimizer)
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}"


def _device_of(name: str, group: dict[str, Any], parameter: nn.Parameter) -> torch.device:
    """torch keeps its step counters on the CPU unless the whole step runs on the device."""
    on_device = name != "step" or group.get("capturable") or group.get("fused")
    return parameter.device if on_device else torch.device("cpu")
