"""Files of arguments, and what they name: data sets and prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..draft import Draft
from ..files import Files, Text
from ..rules import Outcome, number, plain, section, sections, shown, whole, word
from ..texts import parse

_OPTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "n": ("sample.negative_prompt", str),
    "w": ("sample.width", whole),
    "h": ("sample.height", whole),
    "d": ("sample.seed", whole),
    "g": ("sample.guidance", number),
    "l": ("sample.guidance", number),
    "s": ("sample.steps", whole),
    "f": ("sample.frames", whole),
}
"""Options within a prompt, `--w 512`."""
_OF_TABLES = {"negative_prompt": "n", "width": "w", "height": "h", "seed": "d", "scale": "l", "sample_steps": "s"}
_OF_TABLES |= {"guidance_scale": "g", "cfg_scale": "l", "frame_count": "f"}
"""The same in prompts that are TOML or JSON."""


def flat(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments without the sections that they stand in, which mean nothing, and where each stands."""
    arguments: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value in values.items():
        for name, item in value.items() if isinstance(value, Mapping) else [(key, value)]:
            arguments[name] = item
            places[name] = f"{key}.{name}" if isinstance(value, Mapping) else name
    return arguments, places


def arguments_of(main: Text | None) -> tuple[dict[str, Any], Callable[[str], str]]:
    """The arguments of a file, if there is one, and what says where each stands in it."""
    file, values = main or ("", {})
    arguments, places = flat(values)
    return arguments, lambda key: f"{file}: {places.get(key, key)}"


def data_sets(
    arguments: dict[str, Any],
    where: Callable[[str], str],
    others: Sequence[Text],
    files: Files,
    draft: Draft,
    is_data: Callable[[Mapping[str, Any]], bool],
) -> Sequence[Text]:
    """The data sets that the arguments name, or else those that were handed in.

    Raises:
        ConfigError: if a file that is named holds none.
    """
    named = arguments.pop("dataset_config", None)
    if not named:
        return others
    found = files.text(named) if isinstance(named, str) else None
    if found is None:
        if not others:
            say = f"{shown(named)} is not at hand: give it too, or set the data sets in the job"
            draft.tell(where("dataset_config"), "missing", say)
        else:
            draft.tell(where("dataset_config"), "taken", f"is {', '.join(name for name, _ in others)}")
        return others
    draft.tell(where("dataset_config"), "taken", f"is {found[0]}")
    values = parse(*found)
    if not is_data(values):
        raise ConfigError(f"{found[0]}: holds no data sets of this tool ([[datasets]])")
    return [(found[0], values)]


def general_and_sets(
    file: str, values: Mapping[str, Any], draft: Draft
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """What a file of data sets says of all of them, and each.

    Raises:
        ConfigError: if they are no sections.
    """
    try:
        general, sets = section(values.get("general") or {}), sections(values["datasets"])
    except ValueError as error:
        raise ConfigError(f"{file}: general, datasets: {error}") from None
    for key in values:
        if key not in ("general", "datasets"):
            draft.tell(f"{file}: {plain(key)}", "unknown", "is not known here, and was left out")
    return general, sets


def read_prompts(value: Any, key: str, files: Files, draft: Draft) -> None:
    """Reads the file of prompts; options within them are taken from the first.

    Raises:
        ConfigError: for values of the wrong kind.
    """
    if not value:
        return
    found = files.text(value) if isinstance(value, str) else None
    if found is None or found[0].lower().endswith(".json"):
        why = "is JSON, which is not read" if found else "is not at hand: give it too"
        draft.tell(key, "missing", f"{shown(value)} {why}, or set sample.prompts")
        return
    try:
        prompts = _prompts_of(*found)
        fields: dict[str, Any] = {"sample.prompts": [prompt for prompt, _ in prompts]}
        for letter, text in (prompts[0][1] if prompts else {}).items():
            if letter in _OPTIONS:
                name, convert = _OPTIONS[letter]
                fields[name] = convert(text)
    except ValueError as error:
        raise ConfigError(f"{found[0]}: {error}") from None
    told = []
    if len({str(options) for _, options in prompts}) > 1:
        told.append("options within prompts are one for all here, those of the first")
    if left := sorted({letter for _, options in prompts for letter in options} - _OPTIONS.keys()):
        told.append(f"{', '.join(shown(f'--{letter}') for letter in left)}: has no counterpart")
    draft.take(key, Outcome("converted" if told else "taken", "; ".join(told) or f"is {found[0]}", fields))


def _prompts_of(name: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Prompts, each with its options by letter."""
    if name.lower().endswith(".toml"):
        values = parse(name, text)
        prompts = sections(section(values.get("prompt") or {}).get("subset") or [])
        shared = {key: value for key, value in section(values.get("prompt") or {}).items() if key != "subset"}
        merged = [{**shared, **one} for one in prompts]
        return [
            (word(one.get("prompt", "")), {_OF_TABLES[key]: one[key] for key in one if key in _OF_TABLES})
            for one in merged
        ]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    parts = [re.split(r"\s--(?=[a-z]+\s)", line) for line in lines]
    return [(one[0], {letter: rest for letter, _, rest in (part.partition(" ") for part in one[1:])}) for one in parts]
