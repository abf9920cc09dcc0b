"""A widget and the field of a job that it sets, read in both directions. Nothing here is of ComfyUI."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from ..trainer_core.config import (
    AdapterConfig,
    CacheConfig,
    DatasetConfig,
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
from ..trainer_core.errors import ConfigError
from .text_fields import TextForm

PARTS: dict[type[Section], str] = {
    ModelConfig: "model",
    AdapterConfig: "adapter",
    DatasetConfig: "dataset",
    TrainConfig: "train",
    RegularizationConfig: "regularization",
    ValidationConfig: "validation",
    SaveConfig: "save",
    SampleConfig: "sample",
    CacheConfig: "cache",
    MemoryConfig: "memory",
}
"""Where a section is found in a job."""
NEEDS = "foundry_needs"
"""Key of `Setting.needs` among an input's options, by which the page hides what would do nothing."""
UNLINKED = "foundry_unlinked"
"""The same of inputs that take this one's place when something is linked to them: a list of names."""
NOT_LINKED = object()
"""What `validate_inputs` takes for an input that nothing is linked to; one that is linked is None there."""
ON = "on"
"""What a widget shows that is on: true, a number above 0, a text that is not blank."""

Values = dict[str, dict[str, Any]]
"""Values of fields, by the part of the job and the field's name."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A widget and the field that it sets."""

    section: type[Section]
    field: str
    name: str = ""
    """The widget's name, where the field's own would be ambiguous on the node."""
    empty: Any = None
    """The value that stands for an empty field, because a number's widget always holds one."""
    text: TextForm | None = None
    """How a field that holds several values is written in a box of text."""
    advanced: bool = False
    """Rarely changed: shown on demand."""
    needs: Mapping[str, Sequence[Any] | str] = dataclasses.field(default_factory=dict)
    """The widgets of the same node without which this one does nothing, all of them: values, or `ON`."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What differs from the field in the widget (`step`, `options` to choose from, …)."""

    @property
    def widget(self) -> str:
        """The widget's name."""
        return self.name or self.field

    @property
    def default(self) -> Any:
        """What the widget shows until it is changed."""
        return self.shown(self.section.model_fields[self.field].default)

    def value(self, shown: Any) -> Any:
        """The field's value for what the widget shows.

        Raises:
            ConfigError: for a text that says nothing.
        """
        if self.text is not None:
            try:
                return self.text.read(str(shown))
            except ValueError as error:
                raise ConfigError(f"{self.widget}: {error}") from None
        return None if self.empty is not None and shown == self.empty else shown

    def shown(self, value: Any) -> Any:
        """What the widget shows for the field's value: the inverse of `value`."""
        if self.text is not None:
            return self.text.show(value)
        if value is None:
            return "" if self.empty is None else self.empty
        return value


def main(table: Iterable[Setting]) -> list[Setting]:
    """What every user looks at."""
    return [setting for setting in table if not setting.advanced]


def advanced(table: Iterable[Setting]) -> list[Setting]:
    """What is shown on demand."""
    return [setting for setting in table if setting.advanced]


def values(table: Iterable[Setting], shown: Mapping[str, Any]) -> Values:
    """The fields' values, by part, of a node's widgets; prompts of before a widget came leave it out.

    Raises:
        ConfigError: for a text that says nothing.
    """
    found: Values = {}
    for setting in table:
        found.setdefault(PARTS[setting.section], {})[setting.field] = setting.value(
            shown.get(setting.widget, setting.default)
        )
    return found


def checked(table: Iterable[Setting], shown: Mapping[str, Any]) -> Values:
    """`values` of sections whose fields may all be left out, refused at once if they are wrong or do not fit together.

    Raises:
        ConfigError: with one line for each thing that is wrong.
    """
    table = tuple(table)
    found = values(table, shown)
    for section in {setting.section: None for setting in table}:
        try:
            validated(section, found[PARTS[section]])
        except ConfigError as error:
            raise ConfigError(_by_widget(str(error), [one for one in table if one.section is section])) from None
    return found


def refused(table: Iterable[Setting], shown: Mapping[str, Any]) -> bool | str:
    """What a node answers ComfyUI before the run: True, or why some of its widgets cannot stay as they are.

    Args:
        shown: those that are looked at; None is one that is linked, and then nothing is known yet.
    """
    if None in shown.values():
        return True
    try:
        checked([setting for setting in table if setting.widget in shown], shown)
    except ConfigError as error:
        return str(error)
    return True


def _by_widget(text: str, table: Iterable[Setting]) -> str:
    """Lines that begin with a field, beginning with its widget."""
    names = {setting.field: setting.widget for setting in table}
    heads = [line.partition(":") for line in text.splitlines()]
    return "\n".join(f"{names.get(head, head)}{colon}{rest}" for head, colon, rest in heads)


def choices(section: type[Section], field: str) -> list[str]:
    """What a field may be that is one of a few words."""
    return list(get_args(section.model_fields[field].annotation))
