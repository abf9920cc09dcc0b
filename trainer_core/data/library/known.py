"""What runs say of data sets: which were trained on, and with which settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import DatasetConfig, validated
from ...config.yaml_text import LIMIT, read_yaml
from ...content import read_once
from ...errors import ConfigError, FoundryError
from ...reading import leads_away, read_regular
from ...runs.find import runs_in
from ..folder import expanded, is_there
from ..walk import real

_SECTION = re.compile(r"^datasets:\n(?:(?:[ -].*)?\n)*", re.MULTILINE)
"""Of a run's own job.yaml, which is written block by block: a tenth of the time that reading all of it takes."""


@dataclass
class Use:
    """A folder that runs trained on."""

    folder: Path
    config: DatasetConfig
    """As the latest of them had it."""
    runs: list[str] = field(default_factory=list)


def uses(runs: Path, allowed: Callable[[Path], bool]) -> dict[str, Use]:
    """By the folder's real path; what cannot be read, or lies where nobody may look, is passed over."""
    found: dict[str, Use] = {}
    for run, dataset in _named(runs):
        if not allowed(Path(dataset.folder)):
            continue
        use = found.setdefault(real(dataset.folder), Use(Path(dataset.folder), dataset))
        use.config = dataset
        if run not in use.runs:
            use.runs.append(run)
    return found


def _named(runs: Path) -> Iterator[tuple[str, DatasetConfig]]:
    """Runs and their data sets' settings, the oldest run first."""
    jobs = [run.path / "job.yaml" for run in runs_in(runs) if not leads_away(run.path)]
    there = [job for job in jobs if is_there(job) and not leads_away(job)]
    for job in sorted(there, key=lambda job: job.stat().st_mtime):
        for given in _datasets(job):
            try:
                dataset = validated(DatasetConfig, given)
                expanded(dataset.folder)
            except FoundryError:  # a job of another version, or somebody's own: it tells nothing here
                continue
            if Path(dataset.folder).is_absolute():
                yield job.parent.name, dataset


@read_once
def _datasets(job: Path) -> list[dict[str, Any]]:
    try:
        text = read_regular(job, LIMIT).decode("utf-8-sig")
        section = _SECTION.search(text)
        read = read_yaml(section[0] if section else text)
    except (OSError, ValueError, ConfigError):
        return []
    datasets = read.get("datasets") if isinstance(read, dict) else None
    return [one for one in datasets if isinstance(one, dict)] if isinstance(datasets, list) else []
