"""The job as far as it is read, where each of its settings comes from, and what is told of the foreign ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import JobConfig, TrainConfig, validated
from ..errors import ConfigError
from .rules import Epochs, Kind, Outcome, Share, Table, View, plain, shown

_PLACEHOLDER = "pictures"
"""Folder of the data set of a job whose files name none."""


@dataclass(frozen=True)
class Note:
    """What became of one foreign setting."""

    key: str
    """Where it stands: file and path, `job.toml: optimizer.lr`."""
    kind: Kind
    text: str = ""
    fields: tuple[str, ...] = ()
    """Our settings that came of it, such as `datasets[0].folder`."""

    @property
    def lost(self) -> bool:
        """Whether a user has to know: it did not come over as it was."""
        return self.kind not in ("taken", "unused")

    def __str__(self) -> str:
        """As a line for people."""
        return f"{self.key}: {self.text}"


@dataclass(frozen=True)
class Captions:
    """Captions of one data set that stand in one file."""

    folder: str
    """Where they belong, beside the pictures, as `metadata.jsonl`."""
    text: str
    """What stands in it."""


class Draft:
    """A job that is being read."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        """By path, `datasets.0.folder`."""
        self.captions: list[Captions] = []
        self._origins: dict[str, str] = {}
        self._notes: dict[tuple[str, str, str], Note] = {}

    @property
    def notes(self) -> tuple[Note, ...]:
        """What is told so far."""
        return tuple(self._notes.values())

    def tell(self, key: str, kind: Kind, text: str, fields: tuple[str, ...] = ()) -> None:
        """Adds a note; what several data sets inherit is told once, with all that came of it."""
        before = self._notes.get((key, kind, text))
        known = before.fields if before else ()
        self._notes[key, kind, text] = Note(key, kind, text, (*known, *(one for one in fields if one not in known)))

    def take(self, key: str, outcome: Outcome, dataset: int | None = None) -> None:
        """Puts what a rule made of a setting into the job; what another has set stays."""
        put = []
        for name, value in outcome.fields.items():
            path = f"datasets.{dataset}{name}" if name.startswith(".") else name
            if self.fields.setdefault(path, value) != value:
                there = shown(self.fields[path])
                self.tell(key, "dropped", f"{_our(path)} is {there}, by {self._origins[path]}; there is one here")
                continue
            self._origins.setdefault(path, key)
            put.append(_our(path))
        if put or not outcome.fields:
            self.tell(key, outcome.kind, outcome.text, tuple(put))

    def read(
        self,
        values: Mapping[str, Any],
        table: Table,
        defaults: Mapping[str, Any],
        where: Callable[[str], str],
        dataset: int | None = None,
    ) -> None:
        """Reads one part of a file.

        Args:
            defaults: what the tool takes where a key is missing, as far as that is not ours.
            where: makes file and path of a key.
            dataset: the number of the data set that it describes.

        Raises:
            ConfigError: for a value that the tool itself could not use.
        """
        flat = flattened(values, table)
        view = View(flat, defaults)
        for key, value in flat.items():
            if rule := table.get(key):
                off = Outcome("unused", "is empty")
                self.take(where(key), off if value is None else _ruled(rule, value, view, where(key)), dataset)
            elif value in ({}, None):
                self.tell(where(key), "unused", "is empty")
            else:
                self.tell(where(key), "unknown", "is not known here, and was left out")
        for key, value in defaults.items():
            if flat.get(key) is None:
                outcome = _ruled(table[key], value, view, where(key))
                if outcome.fields:
                    meant = ", ".join(f"{name.lstrip('.')} {shown(one)}" for name, one in outcome.fields.items())
                    told = f"is not in the file; its default means {meant}"
                    self.take(where(key), Outcome("assumed", told, outcome.fields), dataset)

    def finish(self, count: Callable[[Any], float | None], name: str) -> None:
        """Makes steps of epochs and shares, and asks for what no file has told.

        Args:
            count: how many pictures an epoch draws from the data sets of a job; None if that is not known.
            name: of the run, if none is told.
        """
        if self.fields.setdefault("name", name) == name and "name" not in self._origins:
            self.tell("name", "missing", f"no file tells it: {name}, after the file", ("name",))
        self._name_folders()
        self._count_epochs(count)
        steps = self.fields.get("train.steps", TrainConfig.model_fields["steps"].default)
        for path, share in [(path, value) for path, value in self.fields.items() if isinstance(value, Share)]:
            self.fields[path] = int(share * steps) if isinstance(steps, int) else 0

    def _name_folders(self) -> None:
        """Puts a placeholder where a data set has no folder."""
        numbers = {path.split(".")[1] for path in self.fields if path.startswith("datasets.")} or {"0"}
        for folder in (f"datasets.{number}.folder" for number in sorted(numbers)):
            if folder not in self.fields:
                self.fields[folder] = _PLACEHOLDER
                self.tell("datasets", "missing", f"no file names its folder: set {_our(folder)}", (_our(folder),))

    def _count_epochs(self, count: Callable[[Any], float | None]) -> None:
        """Makes steps of epochs, as far as it is known of how many pictures they are."""
        epochs = {path: value for path, value in self.fields.items() if isinstance(value, Epochs)}
        drawn = count(_nested(self.fields).get("datasets")) if epochs else None
        per_step = self.fields.get("train.batch_size", 1), self.fields.get("train.gradient_accumulation", 1)
        for path, value in epochs.items():
            key = self._origins[path]
            if drawn and all(isinstance(one, int) and one > 0 for one in per_step):
                self.fields[path] = steps = max(1, math.ceil(value * math.ceil(drawn / math.prod(per_step))))
                self._retell(key, "converted", f"{value:g} epochs of {drawn:g} pictures are {steps} steps here", path)
            else:
                del self.fields[path]
                say = f"{value:g} epochs, of how many pictures is not known: {path} stays at its default"
                self._retell(key, "missing", say)

    def job(self, file: str) -> JobConfig:
        """The job.

        Args:
            file: what a message names where it is about no one setting.

        Raises:
            ConfigError: for a value that is refused here, with the place that it comes from.
        """
        data = _nested(self.fields)
        try:
            return validated(JobConfig, data)
        except ConfigError as error:
            first, *others = (self._placed(line, file) for line in str(error).splitlines())
            more = f"; and {len(others)} more like this" if others else ""
            raise ConfigError(f"{first}{more}") from None

    def _retell(self, key: str, kind: Kind, text: str, *paths: str) -> None:
        """Puts a note in the place of those of a setting."""
        self._notes = {place: note for place, note in self._notes.items() if note.key != key}
        self.tell(key, kind, text, tuple(map(_our, paths)))

    def _placed(self, line: str, file: str) -> str:
        """A line about one of our settings, with the foreign key before it."""
        name = re.sub(r"\[(\d+)\]", r".\1", line.split(":")[0])
        while name and name not in self._origins:
            name = name.rpartition(".")[0]
        return f"{self._origins[name]}: cannot be taken over: {line}" if name else f"{file}: {line}"


def under(place: str) -> Callable[[str], str]:
    """Where keys stand below a place."""
    return lambda key: f"{place}.{key}"


def inherited(known: Mapping[str, str], here: Callable[[str], str]) -> Callable[[str], str]:
    """Where keys stand: those that are known, and all others in one place."""
    return lambda key: known.get(key.partition(".")[0]) or here(key)


def flattened(values: Mapping[str, Any], table: Table, before: str = "") -> dict[str, Any]:
    """The settings by path; a section that the table has a rule for stays whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        # a name with a dot in it must not pass for a path
        path = before + (f'"{plain(name)}"' if "." in name else plain(name))
        if path not in table and isinstance(value, Mapping) and value:
            flat |= flattened(value, table, f"{path}.")
        else:
            flat[path] = value
    return flat


def _ruled(rule: Callable[[Any, View], Outcome], value: Any, view: View, key: str) -> Outcome:
    try:
        return rule(value, view)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def _our(path: str) -> str:
    """`datasets.0.folder` as messages write it."""
    return re.sub(r"^datasets\.(\d+)", r"datasets[\1]", path)


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    sets: dict[int, dict[str, Any]] = {}
    for path, value in fields.items():
        head, _, rest = path.partition(".")
        if head == "datasets":
            place, _, name = rest.partition(".")
            sets.setdefault(int(place), {})[name] = value
        elif rest:
            # `model.files.vae` and `train.optimizer_options.eps` have one more level
            part, (name, _, item) = data.setdefault(head, {}), rest.partition(".")
            if item:
                part.setdefault(name, {})[item] = value
            else:
                part[name] = value
        else:
            data[head] = value
    return data | ({"datasets": [sets[place] for place in sorted(sets)]} if sets else {})
