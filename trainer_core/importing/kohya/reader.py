"""sd-scripts' TOML: arguments (`--config_file`), data sets (`--dataset_config`), and a file of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..arguments import reading
from ..captions import take_captions
from ..draft import Draft, inherited, under
from ..files import Files, Text
from ..rules import Epochs, Outcome, sections
from . import data, job

_MARKS = {"pretrained_model_name_or_path", "network_module", "network_dim", "network_args", "train_data_dir"}
_MARKS |= {"dataset_config", "optimizer_type", "max_train_epochs", "max_train_steps", "output_name"}
"""Arguments of which a file of arguments has one."""


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether these are arguments of sd-scripts."""
    return bool(_MARKS & reading.flat(values)[0].keys())


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
    arguments, where = reading.arguments_of(main)
    sets = reading.data_sets(arguments, where, others, files, draft, is_data)
    shared = {data.RENAMED.get(key, key): value for key, value in arguments.items() if key in data.ARGUMENTS}
    origins = {data.RENAMED.get(key, key): where(key) for key in arguments}
    number = 0
    for name, values in sets:
        number = _read_sets(name, values, shared, origins, files, draft, number)
    if not sets and main:
        _read_folders(shared, origins, main[0], files, draft)
    if main:
        rest = {key: value for key, value in arguments.items() if key not in data.ARGUMENTS}
        reading.read_prompts(rest.pop("sample_prompts", None), where("sample_prompts"), files, draft)
        draft.read(rest, job.TABLE, job.DEFAULTS, where)
    if "validation.share" in draft.fields and "validation.every" not in draft.fields:
        draft.take(where("validation_split"), Outcome("assumed", "", {"validation.every": Epochs(1)}))


def _read_sets(
    file: str,
    values: Mapping[str, Any],
    shared: Mapping[str, Any],
    origins: Mapping[str, str],
    files: Files,
    draft: Draft,
    first: int,
) -> int:
    """Reads a file of data sets; gives the number of the next data set."""
    general, sets = reading.general_and_sets(file, values, draft)
    try:
        subsets = [sections(one.get("subsets") or []) for one in sets]
    except ValueError as error:
        raise ConfigError(f"{file}: datasets: {error}") from None
    place = first
    for n, one in enumerate(sets):
        own = {key: value for key, value in one.items() if key != "subsets"}
        for k, subset in enumerate(subsets[n]):
            merged = {**shared, **general, **own, **subset}
            from_where = {**origins, **{key: f"{file}: general.{key}" for key in general}}
            from_where |= {key: f"{file}: datasets[{n}].{key}" for key in own}
            from_where = {key: at for key, at in from_where.items() if key not in subset}
            here = under(f"{file}: datasets[{n}].subsets[{k}]")
            if captions := merged.pop("metadata_file", None):
                take_captions(here("metadata_file"), captions, merged.get("image_dir"), files, draft, place)
            draft.read(merged, data.TABLE, data.DEFAULTS, inherited(from_where, here), place)
            place += 1
    return place


def _read_folders(shared: dict[str, Any], origins: Mapping[str, str], file: str, files: Files, draft: Draft) -> None:
    """Reads `train_data_dir` and `reg_data_dir`, whose sub-folders say how often they are repeated.

    With `in_json` there is one plain folder, whose captions are in that file.
    """
    in_file = f"{file}: {{}}".format
    if captions := shared.get("in_json"):
        plain = {"train_data_dir": "image_dir"}
        values = {plain.get(key, key): value for key, value in shared.items() if key != "in_json"}
        known = {plain.get(key, key): at for key, at in origins.items()}
        take_captions(origins["in_json"], captions, values.get("image_dir"), files, draft, 0)
        draft.read(values, data.TABLE, {}, inherited(known, in_file), 0)
        return
    rest = {key: value for key, value in shared.items() if key not in ("train_data_dir", "reg_data_dir", "num_repeats")}
    keys = [key for key in ("train_data_dir", "reg_data_dir") if shared.get(key)]
    if not keys:
        draft.read(rest, data.TABLE, {}, inherited(origins, in_file), 0)
    for n, key in enumerate(keys):
        values = {"image_dir": shared[key], "kohya_folders": True, "is_reg": key == "reg_data_dir", **rest}
        here = dict.fromkeys(("image_dir", "kohya_folders", "is_reg"), origins[key])
        draft.read(values, data.TABLE, data.DEFAULTS, inherited({**origins, **here}, in_file), n)
    if "num_repeats" in shared:
        draft.tell(origins["num_repeats"], "unused", "the names of the folders say how often they are repeated")
