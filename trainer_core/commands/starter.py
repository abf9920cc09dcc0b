"""`init`: a starter job in which every setting is explained.

It is made from the config's descriptions and defaults and from the demo's recipe or a preset, so it cannot go stale.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from ..api import PLACEHOLDER, Change, FamilySpec, Subject, by_part, demo_job, family_spec, preset, preset_warning
from ..config import (
    AdapterConfig,
    CacheConfig,
    DatasetConfig,
    JobConfig,
    MemoryConfig,
    ModelConfig,
    RegularizationConfig,
    SampleConfig,
    SaveConfig,
    Section,
    TrainConfig,
    ValidationConfig,
    validated,
)
from ..errors import ConfigError
from . import OK, write_new
from .terminal import say

_VRAM, _FAMILY = 12.0, "sdxl"
"""What a preset is for, where the command does not say."""
_WIDTH = 110

_HEAD = """\
A job for LoRA Foundry: `lora-foundry train {file}` runs it.
As it stands it teaches the embedded base a new shape on a CPU in a few minutes. To train on pictures of your own,
set trigger, and under datasets folder and resolutions; for another base, source under model.
A line such as `#dropout: 0.0` is a setting that is left at its default: take the `#` away to change it."""

_PRESET_HEAD = """\
A job for LoRA Foundry, from the preset {subject} for {title} and {vram:g} GB: `lora-foundry train {file}` runs it.
Set trigger, folder under datasets, and source under model: a checkpoint (.safetensors), a folder in diffusers
layout, or a Hugging Face repository. Comments that begin with `Preset:` say why a setting is as it is.
A line such as `#dropout: 0.0` is a setting that is left at its default: take the `#` away to change it."""
_PROMPTS = {
    "character": (
        "a photo of {trigger} in a park",  # it is there
        "{trigger} as an astronaut, oil painting",  # with what no picture showed
        "a photo of a person in a park",  # and stays away when it is not called
    ),
    "style": ("{trigger}, a lighthouse", "{trigger}, a crowded market at night", "a lighthouse"),
    "object": ("a photo of {trigger} on a table", "{trigger} in the snow, at night", "a photo of a table"),
}
"""What a preset's previews ask for: what was learned, it in new surroundings, and something without it."""

_SHOWN = {
    "model": ("family", "source"),
    "adapter": ("rank", "targets"),
    "datasets": ("folder", "resolutions"),
    "train": ("steps", "batch_size", "learning_rate"),
    "regularization": ("output_preservation", "output_preservation_class"),
    "validation": ("every", "share"),
    "save": ("every",),
    "sample": ("prompts", "every"),
    "cache": ("limit_gb",),
    "memory": ("plan",),
}
"""What a beginner should see first. One setting at least: YAML reads a section of nothing but comments as null."""


def init(args: argparse.Namespace) -> int:
    """Writes the starter job to a file that is not there yet."""
    file: Path = args.file
    note = None
    if args.preset is not None:
        spec, vram = family_spec(args.family or _FAMILY), args.vram or _VRAM
        text, note = preset_job(file.name, args.preset, vram, spec), preset_warning(vram, spec)
    elif args.vram or args.family:
        raise ConfigError("--vram and --family belong to --preset")
    else:
        text = starter_job(file.name)
    write_new(file, text, "lora-foundry init FILE")
    say(f"wrote {file}. Train it with: lora-foundry train {file}")
    if note:
        say(f"note: {note}")
    return OK


def starter_job(file: str = "job.yaml") -> str:
    """The text of the starter: chosen settings, and all others commented out at their defaults."""
    demo = demo_job()
    recipe: dict[str, Section] = {
        "model": demo.model.but(device="auto"),
        "adapter": demo.adapter,
        "datasets": demo.datasets[0].but(trigger=None),  # it is set once, for the whole job
        "train": demo.train,
        "regularization": demo.regularization,
        "validation": demo.validation,
        "save": demo.save,
        "sample": SampleConfig(prompts=(f"a red {PLACEHOLDER} on a white background",), every=demo.save.every),
        "cache": demo.cache,
        "memory": demo.memory,
    }
    return _text(_HEAD.format(file=file), "my_first_lora", demo.preview_trigger, recipe, ())


def preset_job(file: str, subject: Subject, vram_gb: float, spec: FamilySpec) -> str:
    """The same from a preset, with the reason of each setting that it changes."""
    changes = preset(subject, vram_gb, spec)
    parts = by_part(changes)
    prompts = [prompt.format(trigger=PLACEHOLDER) for prompt in _PROMPTS[subject]]
    recipe: dict[str, Section] = {
        "model": ModelConfig(family=spec.name, source=spec.default_repo),
        "adapter": validated(AdapterConfig, parts["adapter"]),
        "datasets": validated(DatasetConfig, {"folder": "pictures", **parts["dataset"]}),
        "train": validated(TrainConfig, parts["train"]),
        "regularization": RegularizationConfig(),
        "validation": ValidationConfig(),
        "save": validated(SaveConfig, parts["save"]),
        "sample": validated(SampleConfig, {"prompts": prompts, **parts["sample"]}),
        "cache": CacheConfig(),
        "memory": MemoryConfig(),
    }
    head = _PRESET_HEAD.format(subject=subject, title=spec.title, vram=vram_gb, file=file)
    return _text(head, f"my_{subject}", "ohwx", recipe, changes)


def _text(head: str, job: str, trigger: str | None, recipe: Mapping[str, Section], changes: Sequence[Change]) -> str:
    """A job as YAML."""
    lines = [f"# {line}" for line in head.splitlines()]
    for field, value in (("name", job), ("trigger", trigger)):
        lines += ["", *_setting(JobConfig.model_fields[field], field, value, chosen=True)]
    for name, section in recipe.items():
        lines += ["", f"# {(section.__doc__ or '').splitlines()[0]}", f"{name}:"]
        part = "dataset" if name == "datasets" else name
        reasons = {change.field: change.reason for change in changes if change.part == part}
        settings = _settings(type(section), _chosen(section, (*_SHOWN[name], *reasons)), reasons)
        lines += _as_list_item(settings) if name == "datasets" else _indented(settings)
    return "\n".join(lines) + "\n"


def _chosen(section: Section, shown: tuple[str, ...]) -> dict[str, Any]:
    """The settings shown in any case, and those that are not at their defaults."""
    changed = (name for name, field in type(section).model_fields.items() if getattr(section, name) != field.default)
    return {name: getattr(section, name) for name in dict.fromkeys([*shown, *changed])}


def _settings(kind: type[Section], chosen: Mapping[str, Any], reasons: Mapping[str, str]) -> Iterator[str]:
    """All settings of a section; the chosen ones first, since a YAML list item starts with a setting that is there."""
    for name in [*chosen, *(name for name in kind.model_fields if name not in chosen)]:
        field = kind.model_fields[name]
        value = chosen.get(name, field.default)
        yield from _setting(field, name, value, chosen=name in chosen, reason=reasons.get(name))


def _setting(field: FieldInfo, name: str, value: Any, *, chosen: bool, reason: str | None = None) -> Iterator[str]:
    """The description as a comment, the preset's reason if it has one, then the setting."""
    for text in (f"{field.description}{_choices(field)}", *([f"Preset: {reason}."] if reason else ())):
        yield from (f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False))
    yield f"{'' if chosen else '#'}{name}: {_scalar(value)}".rstrip()


def _choices(field: FieldInfo) -> str:
    """The values of a field that takes only certain ones."""
    values = get_args(field.annotation)
    return f" One of: {', '.join(values)}." if len(values) > 1 and all(isinstance(v, str) for v in values) else ""


def _scalar(value: Any) -> str:
    """A value as YAML on one line; None is left empty."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _indented(lines: Iterator[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _as_list_item(lines: Iterator[str]) -> list[str]:
    """One item of a YAML list: the dash stands at the first setting."""
    item, dashed = [], False
    for line in lines:
        starts = not dashed and not line.startswith("#")
        item.append(f"{'- ' if starts else '  '}{line}")
        dashed = dashed or starts
    return item
