"""sd-scripts' TOML: arguments (`--config_file`), data sets (`--dataset_config`), and a file of prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..draft import Draft, inherited, under
from ..files import Files, Text
from ..rules import Epochs, Outcome, number, section, sections, shown, whole, word
from ..texts import parse
from . import data, job

_MARKS = {"pretrained_model_name_or_path", "network_module", "network_dim", "network_args", "train_data_dir"}
_MARKS |= {"dataset_config", "optimizer_type", "max_train_epochs", "max_train_steps", "output_name"}
"""Arguments of which a file of arguments has one."""
_OPTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "n": ("sample.negative_prompt", str),
    "w": ("sample.width", whole),
    "h": ("sample.height", whole),
    "d": ("sample.seed", whole),
    "l": ("sample.guidance", number),
    "s": ("sample.steps", whole),
    "f": ("sample.frames", whole),
}
"""Options within a prompt, `--w 512`."""
_OF_TABLES = {"negative_prompt": "n", "width": "w", "height": "h", "seed": "d", "scale": "l", "sample_steps": "s"}
"""The same in prompts that are TOML or JSON."""


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether these are arguments of sd-scripts."""
    return bool(_MARKS & job.flat(values)[0].keys())


def is_data(values: Mapping[str, Any]) -> bool:
    """Whether these are data sets of sd-scripts."""
    sets = values.get("datasets")
    return isinstance(sets, list) and any(isinstance(one, Mapping) and "subsets" in one for one in sets)


def read(main: Text | None, others: Sequence[Text], files: Files, draft: Draft) -> None:
    """Reads arguments and data sets into a draft.

    Args:
        others: data sets that were handed in.

    Raises:
        ConfigError: for values of the wrong kind.
    """
    arguments, places = job.flat(main[1]) if main else ({}, {})
    file = main[0] if main else ""

    def where(key: str) -> str:
        return f"{file}: {places.get(key, key)}"

    sets = _data_sets(arguments, where, others, files, draft)
    shared = {data.RENAMED.get(key, key): value for key, value in arguments.items() if key in data.ARGUMENTS}
    origins = {data.RENAMED.get(key, key): where(key) for key in arguments}
    number = 0
    for name, values in sets:
        number = _read_sets(name, values, shared, origins, draft, number)
    if not sets and main:
        _read_folders(shared, origins, file, draft)
    if main:
        rest = {key: value for key, value in arguments.items() if key not in data.ARGUMENTS}
        _read_prompts(rest.pop("sample_prompts", None), where("sample_prompts"), files, draft)
        draft.read(rest, job.TABLE, job.DEFAULTS, where)
    if "validation.share" in draft.fields and "validation.every" not in draft.fields:
        draft.take(where("validation_split"), Outcome("assumed", "", {"validation.every": Epochs(1)}))


def _data_sets(
    arguments: dict[str, Any], where: Callable[[str], str], others: Sequence[Text], files: Files, draft: Draft
) -> Sequence[Text]:
    """The data sets that the arguments name, or else those that were handed in."""
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
        raise ConfigError(f"{found[0]}: holds no data sets of sd-scripts ([[datasets]] with subsets)")
    return [(found[0], values)]


def _read_sets(
    file: str,
    values: Mapping[str, Any],
    shared: Mapping[str, Any],
    origins: Mapping[str, str],
    draft: Draft,
    first: int,
) -> int:
    """Reads a file of data sets; gives the number of the next data set."""
    try:
        general, sets = section(values.get("general") or {}), sections(values["datasets"])
        subsets = [sections(one.get("subsets") or []) for one in sets]
    except ValueError as error:
        raise ConfigError(f"{file}: general, datasets: {error}") from None
    for key in values:
        if key not in ("general", "datasets"):
            draft.tell(f"{file}: {key}", "unknown", "is not known here, and was left out")
    place = first
    for n, one in enumerate(sets):
        own = {key: value for key, value in one.items() if key != "subsets"}
        for k, subset in enumerate(subsets[n]):
            merged = {**shared, **general, **own, **subset}
            from_where = {**origins, **{key: f"{file}: general.{key}" for key in general}}
            from_where |= {key: f"{file}: datasets[{n}].{key}" for key in own}
            from_where = {key: at for key, at in from_where.items() if key not in subset}
            here = under(f"{file}: datasets[{n}].subsets[{k}]")
            draft.read(merged, data.TABLE, data.DEFAULTS, inherited(from_where, here), place)
            place += 1
    return place


def _read_folders(shared: dict[str, Any], origins: Mapping[str, str], file: str, draft: Draft) -> None:
    """Reads `train_data_dir` and `reg_data_dir`, whose sub-folders say how often they are repeated."""
    rest = {key: value for key, value in shared.items() if key not in ("train_data_dir", "reg_data_dir", "num_repeats")}
    in_file = f"{file}: {{}}".format
    keys = [key for key in ("train_data_dir", "reg_data_dir") if shared.get(key)]
    if not keys:
        draft.read(rest, data.TABLE, {}, inherited(origins, in_file), 0)
    for n, key in enumerate(keys):
        values = {"image_dir": shared[key], "kohya_folders": True, "is_reg": key == "reg_data_dir", **rest}
        here = dict.fromkeys(("image_dir", "kohya_folders", "is_reg"), origins[key])
        draft.read(values, data.TABLE, data.DEFAULTS, inherited({**origins, **here}, in_file), n)
    if "num_repeats" in shared:
        draft.tell(origins["num_repeats"], "unused", "the names of the folders say how often they are repeated")


def _read_prompts(value: Any, key: str, files: Files, draft: Draft) -> None:
    """Reads the file of prompts; options within them are taken from the first."""
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
    if len({str(options) for _, options in prompts}) > 1:
        draft.take(key, Outcome("converted", "options within prompts are one for all here, those of the first", fields))
    else:
        draft.take(key, Outcome("taken", f"is {found[0]}", fields))


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
