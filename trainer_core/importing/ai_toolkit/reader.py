"""AI Toolkit's YAML (or JSON): a job with a process that trains, its data sets and its previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..captions import take_captions
from ..draft import Draft, under
from ..files import Files, Text
from ..rules import plain, run_name, section, sections, shown, to, word
from . import data, job

_SLIDERS = "trains a concept slider"
_REFUSED = {"concept_slider": _SLIDERS, "slider": _SLIDERS, "ultimate_slider_trainer": _SLIDERS}
_REFUSED |= {"image_reference_slider_trainer": _SLIDERS, "concept_replacer": "replaces a concept"}


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether these are the settings of a job of AI Toolkit."""
    config = values.get("config")
    return isinstance(config, Mapping) and "process" in config


def read(main: Text | None, others: Sequence[Text], files: Files, draft: Draft) -> None:  # noqa: ARG001
    """Reads a job into a draft.

    Raises:
        ConfigError: for a job that trains no LoRA, and for values of the wrong kind.
    """
    assert main is not None
    file, values = main
    try:
        config = section(values["config"])
        name = word(config["name"]) if config.get("name") is not None else None
        processes = sections(config["process"])
    except ValueError as error:
        raise ConfigError(f"{file}: config: {error}") from None
    draft.read({"name": name} if name else {}, {"name": to("name", run_name)}, {}, under(f"{file}: config"))
    for key in values:
        if key == "job":
            draft.tell(f"{file}: job", "taken", "one that trains")
        elif key == "meta":
            draft.tell(f"{file}: meta", "dropped", "the LoRA file's metadata is written by the run itself")
        elif key != "config":
            draft.tell(f"{file}: {plain(key)}", "unknown", "is not known here, and was left out")
    for key in config:
        if key not in ("name", "process"):
            draft.tell(f"{file}: config.{plain(key)}", "unknown", "is not known here, and was left out")
    number = _training(processes, file)
    for other in range(len(processes)):
        if other != number:
            say = "a job here trains once: put this process into a file of its own to take it over"
            draft.tell(f"{file}: config.process[{other}]", "dropped", say)
    _read_process(_named(processes[number], name or ""), f"{file}: config.process[{number}]", files, draft)


def _training(processes: list[Mapping[str, Any]], file: str) -> int:
    """The place of the first process that trains a LoRA."""
    for number, process in enumerate(processes):
        kind = process.get("type")
        if isinstance(kind, str) and kind in job.TRAINERS:
            return number
    kinds = [process.get("type") for process in processes]
    what = next((_REFUSED[kind] for kind in kinds if isinstance(kind, str) and kind in _REFUSED), None)
    what = what or (f"has processes {', '.join(map(shown, kinds[:5]))}" if kinds else "has no process")
    raise ConfigError(f"{file}: config.process: the job {what}, and none that trains a LoRA")


def _read_process(process: Mapping[str, Any], place: str, files: Files, draft: Draft) -> None:
    rest = {key: value for key, value in process.items() if key not in ("type", "datasets", "sample")}
    try:
        sets = sections(process.get("datasets") or [])
        sample = section(process.get("sample") or {})
        train = section(process.get("train") or {})
    except ValueError as error:
        raise ConfigError(f"{place}: datasets, sample, train: {error}") from None
    draft.tell(f"{place}.type", "taken", "one that trains a LoRA")
    defaults = job.DEFAULTS
    if not process.get("network"):
        draft.tell(f"{place}.network", "missing", "is not there: the whole model is trained, and a LoRA by this job")
        defaults = {key: value for key, value in defaults.items() if not key.startswith("network.")}
    draft.read(rest, job.TABLE, defaults, under(place))
    for number, one in enumerate(sets):
        here = under(f"{place}.datasets[{number}]")
        path = one.get("dataset_path")
        if isinstance(path, str) and path.lower().endswith(".json"):
            take_captions(here("dataset_path"), path, None, files, draft, number)
            one = {key: value for key, value in one.items() if key not in ("dataset_path", "folder_path")}
        draft.read(one, data.TABLE, data.DEFAULTS, here, number)
    if sample:
        shared = {**sample, "disable": train.get("disable_sampling")}
        draft.read(shared, data.SAMPLE, data.SAMPLE_DEFAULTS, under(f"{place}.sample"))


def _named(value: Any, name: str) -> Any:
    """A value with the job's name where a text has `[name]`."""
    if isinstance(value, str):
        return value.replace("[name]", name)
    if isinstance(value, Mapping):
        return {key: _named(item, name) for key, item in value.items()}
    return [_named(item, name) for item in value] if isinstance(value, list) else value
