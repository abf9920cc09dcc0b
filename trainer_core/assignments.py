"""Settings changed by hand, as `field=value`: in a job, and of a run that goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import JobConfig, resolved, validated
from .config.yaml_text import read_yaml
from .errors import ConfigError
from .runs.run_folder import RunFolder
from .training.resume_rules import DATA, MAY_BE_ACCEPTED, MAY_CHANGE


def changed_job(job: JobConfig, assignments: Sequence[str]) -> JobConfig:
    """A job with settings changed by `field=value`, the value in YAML: `train.steps=900`, `datasets[0].weight=2`.

    Raises:
        ConfigError: for what is no assignment, an unknown field, or a value that it cannot have.
    """
    if not assignments:
        return job
    data: dict[str, Any] = job.model_dump(mode="json")
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: give a field and its value, such as --set train.steps=900")
        try:
            value = read_yaml(text)
        except ValueError as error:
            raise ConfigError(f"--set {assignment}: the value {error}") from None
        _put(data, field.strip(), value)
    return resolved(validated(JobConfig, data), Path.cwd())


def _put(data: dict[str, Any], field: str, value: Any) -> None:
    """Sets one field by its place, such as `datasets[0].folder`; the config judges what is there in the end."""
    *way, last = parts_of(field) or [""]
    place: Any = data
    try:
        for part in way:
            place = place[part]
        if isinstance(place, list) != isinstance(last, int):
            raise TypeError
        place[last] = value  # if there is no setting of that name, the config tells
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"--set {field}: a job has no such setting. Its job.yaml shows all there are") from None


def parts_of(field: str) -> list[str | int]:
    """The names and indices on the way to a setting: `datasets`, 0 and `folder` of `datasets[0].folder`."""
    parts = re.findall(r"([^.\[\]]+)|\[(\d{1,6})\]", field)
    return [int(index) if index else name for name, index in parts]


def accepted_by(run: RunFolder, assignments: Sequence[str]) -> set[str]:
    """What a run may differ in from its checkpoint because its user set it so: who sets a field wishes its change.

    Raises:
        ConfigError: for fields that may not change once there is a checkpoint; told before everything is loaded.
    """
    fields = [assignment.partition("=")[0].strip() for assignment in assignments]
    plain = {re.sub(r"\[\d+\]", "", field): field for field in fields}
    kept = [
        field
        for name, field in plain.items()
        if not {name, name.partition(".")[0]} & (MAY_CHANGE.keys() | MAY_BE_ACCEPTED.keys() - {DATA})
    ]
    if kept and run.latest():
        may = ", ".join([*MAY_CHANGE, *(name for name in MAY_BE_ACCEPTED if name != DATA)])
        raise ConfigError(
            f"--set {', '.join(kept)}: may not change when a run goes on; start a new run. These may: {may}"
        )
    return plain.keys() & MAY_BE_ACCEPTED.keys() - {DATA}
