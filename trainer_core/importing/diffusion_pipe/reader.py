"""diffusion-pipe's TOML: the main file, and the files of data sets that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..draft import Draft, inherited, under
from ..files import Files, Text
from ..rules import Outcome, run_name, section, sections, shown
from ..texts import parse
from . import data, job

_FIRST = "first_frame_conditioning_p"
"""A setting of the model that is one of data sets here."""


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether these are the settings of a main file."""
    model = values.get("model")
    return isinstance(model, Mapping) and "type" in model


def is_data(values: Mapping[str, Any]) -> bool:
    """Whether these are data sets of diffusion-pipe."""
    return isinstance(values.get("directory"), list)


def read(main: Text | None, others: Sequence[Text], files: Files, draft: Draft) -> None:
    """Reads a main file and its data sets into a draft.

    Args:
        others: data sets that were handed in.

    Raises:
        ConfigError: for values of the wrong kind.
    """
    if main is None:
        number = 0
        for text in others:
            number = _read_sets(text, {}, {}, draft, number)
        return
    file, values = main
    elsewhere = ("dataset", "output_dir", "video_clip_mode", "uncond_fraction")
    rest = {key: value for key, value in values.items() if key not in elsewhere}
    model = {key: value for key, value in section(values["model"]).items() if key != _FIRST}
    shared = {key: values[key] for key in ("video_clip_mode", "uncond_fraction") if key in values}
    places = {key: f"{file}: {key}" for key in shared} | {_FIRST: f"{file}: model.{_FIRST}"}
    if _FIRST in values["model"]:
        shared[_FIRST] = values["model"][_FIRST]
    number = 0
    for text, role in _data_sets(values, file, others, files, draft):
        inherits = shared if role == "train" else {}
        number = _read_sets(text, inherits, places | {"role": f"{file}: eval_datasets"}, draft, number, role)
    if not number:
        draft.read(shared, data.TABLE, {}, inherited(places, under(file)), 0)
    if "adapter" not in values:
        say = "is not there: diffusion-pipe trains the whole model, and this job a LoRA"
        draft.tell(f"{file}: adapter", "missing", say)
    draft.read({**rest, "model": model}, job.TABLE, job.DEFAULTS, lambda key: f"{file}: {key}")
    folder = values.get("output_dir")
    last = folder.replace("\\", "/").rstrip("/").rpartition("/")[2] if isinstance(folder, str) else ""
    if last:
        say = "its last folder is the name; runs lie in one folder (--runs, or ComfyUI's output folder)"
        draft.take(f"{file}: output_dir", Outcome("converted", say, {"name": run_name(last)}))


def _data_sets(
    values: Mapping[str, Any], file: str, others: Sequence[Text], files: Files, draft: Draft
) -> list[tuple[Text, str]]:
    """The data sets that the main file names, each with its role, or else those that were handed in."""
    wanted = [("dataset", values.get("dataset"), "train")]
    try:
        evaluated = sections(values.get("eval_datasets") or [])
    except ValueError as error:
        raise ConfigError(f"{file}: eval_datasets: {error}") from None
    for number, one in enumerate(evaluated):
        wanted.append((f"eval_datasets[{number}].config", one.get("config"), "validation"))
    found: list[tuple[Text, str]] = []
    for key, named, role in wanted:
        text = files.text(named) if isinstance(named, str) else None
        if text is not None:
            draft.tell(f"{file}: {key}", "taken", f"is {text[0]}")
            found.append(((text[0], _checked(text)), role))
        elif role == "train" and others:
            unnamed = [one for one in others if one[0] not in files.used]
            draft.tell(f"{file}: {key}", "taken", f"is {', '.join(name for name, _ in unnamed)}")
            found += [(one, role) for one in unnamed]
        else:
            say = f"{shown(named)} is not at hand: give it too, or set the data sets in the job"
            draft.tell(f"{file}: {key}", "missing", say)
    return found


def _checked(text: tuple[str, str]) -> Mapping[str, Any]:
    values = parse(*text)
    if not is_data(values):
        raise ConfigError(f"{text[0]}: holds no data sets of diffusion-pipe ([[directory]])")
    return values


def _read_sets(
    text: Text,
    shared: Mapping[str, Any],
    main: Mapping[str, str],
    draft: Draft,
    first: int,
    role: str = "train",
) -> int:
    """Reads a file of data sets; gives the number of the next data set.

    Args:
        shared: what the main file says of them.
        main: where it says so.
    """
    file, values = text
    try:
        directories = sections(values["directory"])
    except ValueError as error:
        raise ConfigError(f"{file}: directory: {error}") from None
    general = {key: value for key, value in values.items() if key != "directory"}
    for number, directory in enumerate(directories):
        here = under(f"{file}: directory[{number}]")
        known = {**main, **{key: f"{file}: {key}" for key in general}}
        known = {key: place for key, place in known.items() if key not in directory}
        own = {**shared, **general, **directory} | ({"role": role} if role != "train" else {})
        draft.read(own, data.TABLE, {}, inherited(known, here), first + number)
    return first + len(directories)
