"""How fields that hold several values are written in a box of text, and read from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class TextForm(NamedTuple):
    """A way to write values."""

    read: Callable[[str], Any]
    """Raises ValueError with a message for the user."""
    show: Callable[[Any], str]
    """The inverse of `read`."""
    hint: str
    """What the tooltip says of it."""
    multiline: bool = False


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]


def _read_whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _parts(text)]
    except ValueError:
        raise ValueError(f"{text!r} are not whole numbers separated by commas, such as `512, 768, 1024`") from None


def _read_floats(text: str) -> list[float]:
    try:
        return [float(part) for part in _parts(text)]
    except ValueError:
        raise ValueError(f"{text!r} are not numbers separated by commas, such as `0.875`") from None


def _show_numbers(numbers: Sequence[float]) -> str:
    return ", ".join(map(str, numbers))


def read_lines(text: str) -> tuple[str, ...]:
    """One entry a line; empty lines do not count."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _read_arguments(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in read_lines(text):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not name or not equals or not value:
            raise ValueError(f"{line!r} is no argument: write one a line, such as `d_coef=2`")
        if name in found:
            raise ValueError(f"{name!r} is given twice")
        found[name] = _read_value(value)
    return found


def _read_value(text: str) -> Any:
    """true, 2, 1e-3, [0.9, 0.99], or else a text. Python's True counts too, because libraries' examples write it."""
    if text in ("True", "False"):
        return text == "True"
    try:
        value = json.loads(text)
    except ValueError:
        pass
    else:
        return text if isinstance(value, dict) or value is None else value
    try:
        return float(text)
    except ValueError:
        return text


def _show_arguments(arguments: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}={_show_value(value)}" for name, value in arguments.items())


def _show_value(value: Any) -> str:
    """Text bare, unless it would not be read as it is."""
    bare = isinstance(value, str) and read_lines(value) == (value,) and _read_value(value) == value
    return value if bare else json.dumps(value)


WHOLE_NUMBERS = TextForm(_read_whole_numbers, _show_numbers, "Several are separated by commas.")
FLOATS = TextForm(_read_floats, _show_numbers, "Several are separated by commas.")
LINES = TextForm(lambda text: list(read_lines(text)), "\n".join, "One a line.", multiline=True)
FILES = TextForm(
    lambda text: [[file.strip() for file in line.split("|") if file.strip()] for line in read_lines(text)],
    lambda groups: "\n".join(" | ".join(files) for files in groups),
    "One line for all prompts, or one for each; several files in a line are separated by `|`. A relative file is "
    "looked for in ComfyUI's input folder.",
    multiline=True,
)
ARGUMENTS = TextForm(_read_arguments, _show_arguments, "One a line, such as `d_coef=2`.", multiline=True)
