"""What becomes of one foreign setting: rules, which a format's table has by key, and what they give."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ..config import plain_name
from ..secrets import redacted

Kind = Literal["taken", "converted", "assumed", "dropped", "unknown", "missing", "unused"]
"""taken: as it is, or in other words. converted: comes near. assumed: stands not in the file, where the tool takes
another default. dropped: has no counterpart. unknown: to the table. missing: is needed, and told nowhere. unused: is
off, or as it always is here."""

T = TypeVar("T")
_LONGEST = 80
"""Characters of a foreign value or key that a message repeats."""


@dataclass(frozen=True)
class Outcome:
    """What a rule makes of a value."""

    kind: Kind
    text: str = ""
    """Why, or how; a part of a sentence."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Our settings by path, `train.steps`; those of the data set that is read begin with a dot, `.folder`."""


class Epochs(float):
    """A number of epochs, which becomes steps once the data sets are read."""


class Share(float):
    """A share of the job's steps."""


class View:
    """The settings of one part of a file, for rules that look at others than their own."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values, self._defaults = values, defaults

    def __getitem__(self, key: str) -> Any:
        """A setting; the tool's default, or None, if it is not there."""
        value = self._values.get(key)
        return self._defaults.get(key) if value is None else value

    def read(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """A setting that another's rule needs.

        Raises:
            ValueError: as the converter does, with the key.
        """
        value = self[key]
        try:
            return default if value is None else convert(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None


Rule = Callable[[Any, View], Outcome]
"""Gets a value that is not None. Raises a ValueError for one that the tool itself could not use."""
Table = Mapping[str, Rule]
"""Rules by key, `train.lr`."""


def to(name: str, convert: Callable[[Any], Any] | None = None, say: str = "") -> Rule:
    """It is one of our settings.

    Args:
        convert: makes ours of the value.
        say: how it differs here.
    """

    def rule(value: Any, _: View) -> Outcome:
        made = convert(value) if convert else value
        return Outcome("converted", say, {name: made}) if say else _renamed(name, value, made)

    return rule


def _renamed(name: str, value: Any, made: Any) -> Outcome:
    """The same in other words, if not in the same."""
    return Outcome("taken", "" if made == value else f"{shown(value)} is {shown(made)} here", {name: made})


def one_of(name: str, ours: Mapping[str, Any]) -> Rule:
    """It is one of our settings, by the tool's word for it; other words are dropped."""

    def rule(value: Any, _: View) -> Outcome:
        made = ours.get(word(value).lower(), _OTHER)
        if made is _OTHER:
            return Outcome(
                "dropped", f"{shown(value)} has no counterpart here; {name.lstrip('.')} stays at its default"
            )
        return _renamed(name, value, made)

    return rule


def drop(reason: str, *neutral: Any) -> Rule:
    """It has no counterpart. Values that switch it off and neutral ones, of which 1 is also true, lose nothing."""

    def rule(value: Any, _: View) -> Outcome:
        same = not value or value in neutral
        return Outcome("unused", "is off, or as it always is here") if same else Outcome("dropped", reason)

    return rule


def with_(key: str) -> Rule:
    """It only says how another setting is meant, and that one's rule looks at it."""
    return lambda *_: Outcome("taken", f"goes with {key}")


def each(rule: Rule, keys: str) -> dict[str, Rule]:
    """The same rule for several keys, with spaces between."""
    return dict.fromkeys(keys.split(), rule)


_OTHER = object()


def number(value: Any) -> float:
    """A number.

    Raises:
        ValueError: if it is none, or not finite.
    """
    try:
        made = math.nan if isinstance(value, bool) or not isinstance(value, str | int | float) else float(value)
    except (ValueError, OverflowError):
        made = math.nan
    if not math.isfinite(made):
        raise ValueError(f"must be a number, and is {shown(value)}")
    return made


def whole(value: Any) -> int:
    """A whole number.

    Raises:
        ValueError: if it is none.
    """
    made = number(value)
    if made != int(made):
        raise ValueError(f"must be a whole number, and is {shown(value)}")
    return int(made)


def word(value: Any) -> str:
    """A text.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"must be a text, and is {shown(value)}")
    return value.strip()


def switch(value: Any) -> bool:
    """Yes or no.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, and is {shown(value)}")
    return value


def section(value: Any) -> Mapping[str, Any]:
    """A section of settings.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a section with settings of its own, and is {shown(value)}")
    return value


def listed(value: Any) -> list[Any]:
    """A list, of one item if it is none."""
    return value if isinstance(value, list) else [value]


def sections(value: Any) -> list[Mapping[str, Any]]:
    """A list of sections.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, list):
        raise ValueError(f"must be a list of sections, and is {shown(value)}")
    return [section(one) for one in value]


def edge(value: Any) -> int:
    """The edge of a square as large as a resolution: 512, `512`, `512,768` or [512, 768].

    Raises:
        ValueError: if it is no resolution.
    """
    sides = value.split(",") if isinstance(value, str) else listed(value)
    if not 1 <= len(sides) <= 2:
        raise ValueError(f"must be a resolution, such as 512 or [512, 768], and is {shown(value)}")
    numbers = [number(side) for side in sides]
    if not all(1 <= one < 2**31 for one in numbers):
        raise ValueError(f"must be a resolution in pixels, and is {shown(value)}")
    return round(math.sqrt(numbers[0] * numbers[-1]))


def run_name(value: Any) -> str:
    """A name that a run can have, as near as can be.

    Raises:
        ValueError: if it is no text.
    """
    name = re.sub(r"[^\w .-]", "_", word(value))[:100].lstrip(" ._-").rstrip(" .")
    try:
        return plain_name(name)
    except ValueError:
        return plain_name(f"imported {name}"[:100].rstrip(" ."))


def shown(value: Any) -> str:
    """A foreign value in a message."""
    text = f"`{value}`" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return plain(text)


def plain(text: str) -> str:
    """A text on one line, of letters that can be seen, without secrets, and short."""
    text = redacted(text)
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)
