"""Widgets made from the configuration's fields, so that defaults, limits and tooltips have one source."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from comfy_api.latest import io

from ..trainer_core.config import Section, description
from .setting import NEEDS, Setting

_LARGEST = 2**53 - 1
"""Whole numbers beyond this are not exact in a browser."""
_OPEN = 10_000_000
"""Upper end of a widget whose field has none."""
_STEP_OF_FLOATS = 0.01


def widgets(table: Iterable[Setting]) -> list[io.Input]:
    """The inputs of a node's settings."""
    return [_of_setting(setting) for setting in table]


def _of_setting(setting: Setting) -> io.Input:
    options = dict(setting.options)
    if setting.advanced:
        options["advanced"] = True
    if setting.needs:
        options["extra_dict"] = {NEEDS: dict(setting.needs)}
    if setting.text is not None:
        tooltip = f"{description(setting.section, setting.field)} {setting.text.hint}"
        default, lines = setting.default, setting.text.multiline
        return io.String.Input(
            setting.widget, **{"tooltip": tooltip, "default": default, "multiline": lines, **options}
        )
    return widget(setting.section, setting.field, name=setting.widget, empty=setting.empty, **options)


def widget(
    section: type[Section], field: str, *, name: str | None = None, empty: Any = None, **options: Any
) -> io.Input:
    """The input of a field that holds one value.

    Args:
        name: the input's name, where the field's own would be ambiguous on the node.
        empty: the value that stands for an empty field, because a number's widget always holds one.
        options: what differs from the field (`advanced`, `step`, `options` to choose from, …).
    """
    info = section.model_fields[field]
    kind, optional = _plain(info.annotation)
    tooltip = description(section, field)
    if optional and empty is not None:
        tooltip = tooltip.replace("Empty:", f"{empty:g}:")
    default = empty if optional and info.default is None else info.default
    given: dict[str, Any] = {"tooltip": tooltip, "default": default, **options}
    name = name or field
    if get_origin(kind) is Literal:
        given.setdefault("options", list(get_args(kind)))
    if "options" in given:
        return io.Combo.Input(name, **given)
    if kind is bool:
        return io.Boolean.Input(name, **given)
    if kind is str:
        given["default"] = "" if given["default"] is None else given["default"]
        return io.String.Input(name, **given)
    low, high = limits(section, field)
    if optional and empty is not None:
        low = min(low, empty)
    if kind is int:
        if name.endswith("seed"):
            given.setdefault("control_after_generate", False)
        return io.Int.Input(name, min=int(low), max=int(min(high, _LARGEST)), **{"step": 1, **given})
    return io.Float.Input(name, min=low, max=high, **{"step": _STEP_OF_FLOATS, **given})


def limits(section: type[Section], field: str) -> tuple[float, float]:
    """Smallest and largest value of a field's widget; an open limit is left to the configuration's own check."""
    low, high = 0.0, float(_OPEN)
    for rule in section.model_fields[field].metadata:
        low = getattr(rule, "ge", getattr(rule, "gt", low))
        high = getattr(rule, "le", getattr(rule, "lt", high))
    return low, high


def or_none(value: Any, empty: Any) -> Any:
    """The inverse of `empty`: None where a widget holds the value that stands for an empty field."""
    return None if value == empty else value


def _plain(annotation: Any) -> tuple[Any, bool]:
    """An annotation without None, and whether None was allowed."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        return rest[0], True
    return annotation, False
