"""`init`: a starter job in which every setting is explained.

It is made from the config's descriptions and defaults and from the demo's recipe, so it cannot go stale.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from ..config import JobConfig, SampleConfig, Section
from ..data.captions import PLACEHOLDER
from ..demo import demo_job
from ..errors import SaveError
from . import OK

_WIDTH = 110

_HEAD = """\
A job for LoRA Foundry: `lora-foundry train {file}` runs it.
As it stands it teaches the embedded base a new shape on a CPU in a few minutes. To train on pictures of your own,
set trigger, and under datasets folder and resolutions; for another base, source under model.
A line such as `#dropout: 0.0` is a setting that is left at its default: take the `#` away to change it."""

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
}
"""What a beginner should see first. One setting at least: YAML reads a section of nothing but comments as null."""


def init(args: argparse.Namespace) -> int:
    """Writes the starter job to a file that is not there yet."""
    file: Path = args.file
    try:
        with file.open("x", encoding="utf-8", newline="\n") as out:
            out.write(starter_job(file.name))
    except FileExistsError:
        raise SaveError(
            f"{file} exists already and stays as it is; give another name: lora-foundry init FILE"
        ) from None
    except OSError as error:
        raise SaveError(f"{file}: cannot be written: {error.strerror or error}") from None
    print(f"wrote {file}. Train it with: lora-foundry train {file}")
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
    }
    lines = [f"# {line}" for line in _HEAD.format(file=file).splitlines()]
    for name, value in (("name", "my_first_lora"), ("trigger", demo.preview_trigger)):
        lines += ["", *_setting(JobConfig.model_fields[name], name, value, chosen=True)]
    for name, section in recipe.items():
        lines += ["", f"# {(section.__doc__ or '').splitlines()[0]}", f"{name}:"]
        settings = _settings(type(section), _chosen(section, _SHOWN[name]))
        lines += _as_list_item(settings) if name == "datasets" else _indented(settings)
    return "\n".join(lines) + "\n"


def _chosen(section: Section, shown: tuple[str, ...]) -> dict[str, Any]:
    """The settings shown in any case, and those that are not at their defaults."""
    changed = (name for name, field in type(section).model_fields.items() if getattr(section, name) != field.default)
    return {name: getattr(section, name) for name in dict.fromkeys([*shown, *changed])}


def _settings(kind: type[Section], chosen: Mapping[str, Any]) -> Iterator[str]:
    """All settings of a section; the chosen ones first, since a YAML list item starts with a setting that is there."""
    for name in [*chosen, *(name for name in kind.model_fields if name not in chosen)]:
        field = kind.model_fields[name]
        yield from _setting(field, name, chosen.get(name, field.default), chosen=name in chosen)


def _setting(field: FieldInfo, name: str, value: Any, *, chosen: bool) -> Iterator[str]:
    """The description as a comment, then the setting."""
    text = f"{field.description}{_choices(field)}"
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
