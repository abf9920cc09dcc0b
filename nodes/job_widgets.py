"""The widgets of Train LoRA and the job that their values make: one table, read in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from comfy_api.latest import io

from ..trainer_core.config import (
    AdapterConfig,
    DatasetConfig,
    JobConfig,
    ModelConfig,
    SampleConfig,
    SaveConfig,
    Section,
    TrainConfig,
    validated,
)
from .widgets import or_none, widget

_PARTS: dict[str, type[Section]] = {"train": TrainConfig, "save": SaveConfig, "sample": SampleConfig}


class _Setting(NamedTuple):
    """A widget and the field that it sets."""

    widget: str
    part: str
    field: str
    empty: Any = None
    """The widget's value that stands for an empty field."""
    options: Mapping[str, Any] = MappingProxyType({})


_MAIN = (
    _Setting("steps", "train", "steps"),
    _Setting("learning_rate", "train", "learning_rate", options={"step": 1e-6}),
    _Setting("batch_size", "train", "batch_size"),
    _Setting("gradient_accumulation", "train", "gradient_accumulation"),
    _Setting("seed", "train", "seed"),
    _Setting("save_every", "save", "every"),
    _Setting("sample_every", "sample", "every"),
)
_ADVANCED = (
    _Setting("lr_scheduler", "train", "lr_scheduler"),
    _Setting("warmup_steps", "train", "warmup_steps"),
    _Setting("weight_decay", "train", "weight_decay", options={"step": 1e-5}),
    _Setting("max_grad_norm", "train", "max_grad_norm"),
    _Setting("timestep_type", "train", "timestep_type"),
    _Setting("gradient_checkpointing", "train", "gradient_checkpointing"),
    _Setting("keep_checkpoints", "save", "keep"),
    _Setting("save_dtype", "save", "dtype"),
    _Setting("sample_before_training", "sample", "before_training"),
    _Setting("sample_width", "sample", "width", empty=0, options={"step": 16}),
    _Setting("sample_height", "sample", "height", empty=0, options={"step": 16}),
    _Setting("sample_steps", "sample", "steps", empty=0),
    _Setting("sample_guidance", "sample", "guidance", empty=-1.0, options={"step": 0.1}),
    _Setting("sample_seed", "sample", "seed"),
    _Setting("sample_walk_seed", "sample", "walk_seed"),
)


def main_widgets() -> list[io.Input]:
    """What every job needs to be looked at."""
    return [_input(setting) for setting in _MAIN]


def advanced_widgets() -> list[io.Input]:
    """What is rarely changed."""
    return [_input(setting, advanced=True) for setting in _ADVANCED]


def job_config(
    name: str,
    base: ModelConfig,
    lora: AdapterConfig,
    datasets: Sequence[DatasetConfig],
    prompts: Sequence[str],
    values: dict[str, Any],
) -> JobConfig:
    """The job that the sockets and the widgets' values describe.

    Raises:
        ConfigError: if the settings are wrong or do not fit together.
    """
    parts: dict[str, dict[str, Any]] = {"train": {}, "save": {}, "sample": {"prompts": list(prompts)}}
    for setting in (*_MAIN, *_ADVANCED):
        value = values[setting.widget]
        parts[setting.part][setting.field] = value if setting.empty is None else or_none(value, setting.empty)
    job = {"name": name, "model": base, "adapter": lora, "datasets": list(datasets), **parts}
    return validated(JobConfig, job)


def _input(setting: _Setting, **options: Any) -> io.Input:
    return widget(
        _PARTS[setting.part], setting.field, name=setting.widget, empty=setting.empty, **setting.options, **options
    )
