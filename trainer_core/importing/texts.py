"""Foreign texts as plain values: YAML and JSON as jobs are read, TOML with the same limits."""

from __future__ import annotations

import math
import re
import sys
from datetime import date, time
from pathlib import PurePath
from typing import Any

from ..config.yaml_text import LIMIT, read_yaml
from ..errors import ConfigError
from ..secrets import redacted
from .rules import plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_YAML = {".yaml", ".yml", ".json"}
_DEEPEST = 20
"""Levels of nesting."""
_MOST = 20_000
"""Settings and items of lists, all together."""
_DOTS = 10_000_000
"""Sum of the squares of each line's dots: tomllib holds as much for a key with dots in it, `a.b.c`."""
_DIGITS = re.compile(r"[0-9_]{1000}")
"""Python's own conversion takes a time that grows with the square of a number's length."""


def parse(name: str, text: str) -> dict[str, Any]:
    """A text's settings.

    Args:
        name: of its file, whose suffix tells what it is; JSON is a part of YAML. Without one it is TOML, or else YAML.

    Raises:
        ConfigError: saying what is wrong, and where.
    """
    shown = plain(name)
    try:
        if len(text) > LIMIT:
            raise ValueError(f"is too large for settings ({len(text) / 1e6:.1f} MB; at most {LIMIT / 1e6:g} MB)")
        text = text.removeprefix("\ufeff")
        suffix = PurePath(name).suffix.lower()
        value = _read_toml(text) if suffix == ".toml" else read_yaml(text) if suffix in _YAML else _read(text)
        if not isinstance(value, dict):
            raise ValueError("holds no settings")
        left = [_MOST]
        return {key: _checked(item, left, 1) for key, item in value.items()}
    except ValueError as error:
        raise ConfigError(f"{shown}: {redacted(str(error))}") from None


def _read(text: str) -> Any:
    try:
        return _read_toml(text)
    except ValueError:
        return read_yaml(text)


def _read_toml(text: str) -> dict[str, Any]:
    if sum(line.count(".") ** 2 for line in text.splitlines()) > _DOTS or _DIGITS.search(text):
        raise ValueError("is not read: it holds a key of too many parts, or a number of too many digits")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise ValueError(f"is not valid TOML: {error}") from None


def _checked(value: Any, left: list[int], depth: int) -> Any:
    """The value if it is as small as settings are; dates as texts.

    Args:
        left: how many values there may be, counted down.

    Raises:
        ValueError: if it is not.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"holds more than {_MOST} settings")
    if depth > _DEEPEST:
        raise ValueError(f"is nested more than {_DEEPEST} levels deep")
    if isinstance(value, dict):
        return {key: _checked(item, left, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_checked(item, left, depth + 1) for item in value]
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("holds a number of more than 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is infinite or none at all (inf, nan)")
    return value.isoformat() if isinstance(value, date | time) else value
