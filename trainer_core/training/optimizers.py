"""Optimizer and learning rate. The rate is a function of the step, so it needs no state."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over the adapter's parameters."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of the update that follows `step` updates.

    It rises linearly over `warmup_steps` (the first update has 1 / warmup of it), then stays, or falls to 0 linearly or
    along half a cosine, reaching 0 after the last update.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    factor = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[config.lr_scheduler]
    return config.learning_rate * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], str]:
    """An optimizer's state as named tensors, and the rest of it as JSON."""
    tensors, values = {}, {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().clone()
            else:
                values[f"{index}.{name}"] = value
    return tensors, json.dumps(values, sort_keys=True)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: str) -> None:
    """The inverse of `optimizer_tensors`; parameter groups keep the settings that they have."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *json.loads(values).items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
