"""musubi-tuner's TOML: arguments (`--config_file`), data sets (`--dataset_config`), and a file of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..arguments import reading
from ..arguments.table import DEFAULTS
from ..captions import take_captions
from ..draft import Draft, inherited, under
from ..files import Files, Text
from . import data, job


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether these are arguments of musubi-tuner."""
    arguments = reading.flat(values)[0]
    module = arguments.get("network_module")
    named = isinstance(module, str) and module.rpartition(".")[2] in job.NETWORKS
    return named or bool({"dit", "dit_high_noise"} & arguments.keys())


def is_data(values: Mapping[str, Any]) -> bool:
    """Whether these are data sets of musubi-tuner."""
    sets, marks = values.get("datasets"), {*data.FOLDERS, *data.LISTS}
    return isinstance(sets, list) and any(isinstance(one, Mapping) and marks & one.keys() for one in sets)


def read(main: Text | None, others: Sequence[Text], files: Files, draft: Draft) -> None:
    """Reads arguments and data sets into a draft.

    Args:
        others: data sets that were handed in.

    Raises:
        ConfigError: for values of the wrong kind.
    """
    arguments, where = reading.arguments_of(main)
    number = 0
    for name, values in reading.data_sets(arguments, where, others, files, draft, is_data):
        general, sets = reading.general_and_sets(name, values, draft)
        for place, one in enumerate(sets):
            known = {key: f"{name}: general.{key}" for key in general if key not in one}
            merged = {**general, **one}
            here = inherited(known, under(f"{name}: datasets[{place}]"))
            for key in data.LISTS:
                if captions := merged.get(key):
                    folder = next((merged[name] for name in data.FOLDERS if merged.get(name)), None)
                    take_captions(here(key), captions, folder, files, draft, number)
            draft.read(merged, data.TABLE, data.defaults(merged), here, number)
            number += 1
    if main:
        reading.read_prompts(arguments.pop("sample_prompts", None), where("sample_prompts"), files, draft)
        draft.read(arguments, job.TABLE, DEFAULTS, where)
