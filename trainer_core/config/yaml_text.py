"""YAML for jobs: the plain part of the language, read so that a text from a stranger can do no harm.

Anchors and aliases ("billion laughs"), tags, deep nesting and huge texts are refused, and so is a key that stands twice
in one section, of which plain YAML silently takes the last. Numbers are read as in YAML 1.2: `1e-4` is a number (YAML
1.1 wants `1.0e-4`), and dates, `0123` and `1:30` are texts and not what YAML 1.1 makes of them.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

LIMIT = 1_000_000
"""Characters of a job: thousands of prompts."""
_DEEPEST = 20
"""Levels of nesting; a job has five."""
_BOOL, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null"))
_PLAIN_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,40})|0x[0-9a-fA-F][0-9a-fA-F_]{0,40}|0b[01][01_]{0,80}")
"""Longer ones stay texts: Python refuses to print numbers of thousands of digits."""
_PLAIN_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


_Quick: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser, where PyYAML has it: ten times as fast, with other words for what is wrong."""


class _Rules:
    """What a SafeLoader is made of here: fewer kinds of values, and a key only once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)  # type: ignore[attr-defined]
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{_short(name)} cannot be the name of a setting: names are texts", key.start_mark
                )
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{_short(name)}` stands twice in one section: keep one of them", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _Loader(_Rules, yaml.SafeLoader):
    pass


class _QuickLoader(_Rules, _Quick):
    pass


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts texts into quotation marks which `_Loader` would take for numbers or fold."""

    def represent_str(self, text: str) -> Any:
        # PyYAML writes these plainly, and reads them as line breaks, which become spaces
        folded = any(letter in text for letter in "\x85\u2028\u2029\ufeff")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if folded else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _resolvers(kept: dict[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    """PyYAML's own for bool and null, by the first letter of a value."""
    return {
        first: [pair for pair in pairs if pair[0] in (_BOOL, _NULL)] for first, pairs in kept.items() if first != "<"
    }


for _loader in (_Loader, _QuickLoader):
    _loader.yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers)
for _kind in (_Loader, _QuickLoader, _Dumper):
    # the whole value must match: without \Z, PyYAML's own matching takes any beginning
    _kind.add_implicit_resolver(_INT, re.compile(rf"(?:{_PLAIN_INT.pattern})\Z"), list("-+0123456789"))
    _kind.add_implicit_resolver(_FLOAT, re.compile(rf"(?:{_PLAIN_FLOAT.pattern})\Z"), list("-+.0123456789"))


def read_yaml(text: str, quickly: bool = False) -> Any:
    """A YAML text's value: None, bool, int, float, str, and lists and dicts of them.

    Args:
        quickly: for texts of ours that are read by the hundred; what is wrong with one is told less well.

    Raises:
        ValueError: saying what is wrong, and where.
    """
    if len(text) > LIMIT:
        raise ValueError(f"is too large for a job ({len(text) / 1e6:.1f} MB; at most {LIMIT / 1e6:g} MB)")
    try:
        _check(text, _Quick if quickly else yaml.SafeLoader)
        loader = (_QuickLoader if quickly else _Loader)(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(f"is not valid YAML: {_told(error)}") from None
    except RecursionError:
        raise ValueError("is not valid YAML: it is nested too deeply") from None


def dump_yaml(value: Any) -> str:
    """A value as a YAML text that `read_yaml` reads back to the same value."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _check(text: str, parser: Any) -> None:
    """Looks at the text's structure before anything is built of it.

    Raises:
        ValueError, yaml.YAMLError: for what a job never needs.
    """
    depth = 0
    for event in yaml.parse(text, Loader=parser):
        where = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
        if isinstance(event, AliasEvent):
            raise ValueError(f"{where}: `*{_short(event.anchor)}` refers to another part, which jobs may not do")
        if isinstance(event, NodeEvent) and event.anchor is not None:
            raise ValueError(
                f"{where}: `&{_short(event.anchor)}` is an anchor, which jobs may not have. Put a text that begins "
                "with & into quotation marks"
            )
        if (tag := getattr(event, "tag", None)) not in (None, "!"):
            raise ValueError(
                f"{where}: `{_short(tag)}` is a tag, which jobs may not have. Put a text that begins with ! "
                "into quotation marks"
            )
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"{where}: is nested more than {_DEEPEST} levels deep")


def _told(error: yaml.YAMLError) -> str:
    """An error without the piece of the text that PyYAML shows: it may hold half a token."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        return str(error).splitlines()[0]
    mark = error.problem_mark or error.context_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{error.context}: {error.problem}{where}" if error.context else f"{error.problem}{where}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
