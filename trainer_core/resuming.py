"""How runs go on: which earlier one a job continues, what becomes of one that differs, what has changed."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .assignments import parts_of
from .config import JobConfig
from .errors import FoundryError, ResumeRefused, RunHeld
from .families.registry import job_with_family
from .runs.run_folder import RunFolder
from .runs.status import run_state
from .safetensors_file import read_header
from .training.resume_rules import (
    MAY_BE_ACCEPTED,
    check_resume,
    digests,
    sampled_hashes,
    settings_text,
)

ASK, GO_ON, NEW_RUN = "ask", "go on with the new values", "start a new run"
IF_CHANGED = (ASK, GO_ON, NEW_RUN)
"""What can be done with an unfinished run whose settings are not the job's."""
_TOLD = 3
"""As many changes are told in one line."""

Contents = Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class Beginning:
    """How a training begins."""

    run: RunFolder | None = None
    """The run that it goes on with; None for a new one."""
    accept: frozenset[str] = frozenset()
    """What may differ from the run's checkpoint (`resume_rules`)."""
    why_new: str = ""
    """Why it does not go on with the latest run of its name, if there is one."""


@dataclass(frozen=True)
class _Earlier:
    """A run of the job's name. `changed` is what keeps it from going on as if it had been this job from its start."""

    run: RunFolder
    step: int | None
    """Of its newest checkpoint."""
    finished: bool
    changed: Mapping[str, str]


@dataclass(frozen=True)
class Changed:
    """What a run would go on with that is not as it was at its newest checkpoint."""

    name: str
    """The setting, or `data`."""
    before: str
    now: str
    """As job.yaml writes them; of data and weights only `now`, a sentence, as nobody can tell what they were."""
    acceptable: bool
    """Whether the run may go on with it."""


def changed_since(run: RunFolder) -> list[Changed]:
    """What keeps a run from going on with its own job as if it had never stopped: edited settings, data, weights.

    Reads the data and the base's files where no setting differs, which takes a while for files it has not seen.

    Raises:
        FoundryError: if the run cannot be read, or its base or data are not there.
    """
    job, checkpoint = job_with_family(run.job()), run.latest()
    if checkpoint is None:
        return []
    saved = read_header(checkpoint.state)["__metadata__"]
    found = _differences(saved, job) or _differences(saved, job, _contents(run.path.parent, job))
    told = [json.loads(text) for text in (saved.get("config", "{}"), settings_text(job))]
    changed = []
    for name, what in found.items():
        before, now = (_value_at(settings, name) for settings in told)
        texts = ("", what) if before == now else (_as_text(before), _as_text(now))
        changed.append(Changed(name, *texts, name in MAY_BE_ACCEPTED))
    return changed


def _value_at(settings: Any, field: str) -> Any:
    try:
        for part in parts_of(field):
            settings = settings[part]
    except (KeyError, IndexError, TypeError):
        return None
    return settings


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def beginning(root: Path, job: JobConfig, if_changed: str) -> Beginning:
    """How a job begins: with the latest run of its name that can end as if it had been this job from its start.

    That run was cancelled, paused or killed, or failed; or it is finished, and the job has more steps or is the same in
    all. If there is none, the latest run of the name counts: where it is finished or has saved nothing, a new one is
    begun; otherwise the user decides.

    Args:
        if_changed: one of `IF_CHANGED`.

    Raises:
        RunHeld: if another process works on it.
        BaseModelError: if the base's family is to be found and is none.
        ResumeRefused: if the user has to decide, or decided for what is not possible.
    """

    @cache
    def contents() -> Mapping[str, str]:
        return _contents(root, job)

    job = job_with_family(job)
    latest: _Earlier | None = None
    for run in _latest_first(root, job):
        try:
            if run.job().name != job.name:
                continue
            earlier = _compared(run, job, contents, in_full=latest is None)
        except FoundryError:
            continue  # a run that cannot be read: there is nothing to go on with
        if not earlier.changed:
            return Beginning(_free(run))
        latest = latest or earlier
    return _decided(latest, job, if_changed) if latest else Beginning()


def _latest_first(root: Path, job: JobConfig) -> list[RunFolder]:
    """The runs whose folders begin with the job's name."""
    folders = [path for path in root.glob(f"{glob.escape(job.name)}*") if RunFolder.is_one(path)]
    return [RunFolder(path) for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)]


def _free(run: RunFolder) -> RunFolder:
    """The run, if nobody works on it."""
    owner = run_state(run).owner
    if owner is not None:
        raise RunHeld(
            f"the run {run.name!r} has these settings, and {owner} works on it. Wait for it, stop it with "
            f'lora-foundry tell "{run.path}" stop, or start another run'
        )
    return run


def _decided(earlier: _Earlier, job: JobConfig, if_changed: str) -> Beginning:
    """What becomes of the latest run of the job's name, which has other settings."""
    run, state = earlier.run, run_state(earlier.run)
    new = Beginning(why_new=f"{run.name} ({state}) has other settings: {_in_short(earlier.changed)}")
    refused = {field: what for field, what in earlier.changed.items() if field not in _acceptable(earlier, job)}
    if state.owner is not None:
        return Beginning(why_new=f"{state.owner} works on {run.name}: {_in_short(earlier.changed)}")
    if if_changed == NEW_RUN or earlier.step is None:
        return new
    if if_changed == GO_ON and not refused:
        return Beginning(run, frozenset(MAY_BE_ACCEPTED))
    if earlier.finished:
        return new
    lines = [f"the run {run.name!r} is not finished ({state} at step {earlier.step}), and its settings have changed:"]
    lines += [f"  {field}: {what}" for field, what in earlier.changed.items()]
    if refused:
        lines.append(
            f"It cannot go on with another {', '.join(refused)}: what it has learned so far would not fit. Put that "
            f"back, or choose `{NEW_RUN}`; this one stays as it is"
        )
    else:
        lines.append(
            f"Put that back to go on as if it had never stopped, or choose `{GO_ON}`, from step {earlier.step + 1} on, "
            f"or `{NEW_RUN}`; this one then stays as it is"
        )
    raise ResumeRefused("\n".join(lines), earlier.changed)


def _acceptable(earlier: _Earlier, job: JobConfig) -> set[str]:
    """The changes that a run may go on with by its user's wish."""
    made = earlier.step or 0
    longer = job.train.steps > made or (job.train.steps == made and not earlier.finished)
    return {*MAY_BE_ACCEPTED, "train.steps"} if longer else set()


def _in_short(changed: Mapping[str, str]) -> str:
    told = [f"{field} {what}" for field, what in changed.items()]
    return "; ".join(told[:_TOLD]) + (f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else "")


def _compared(run: RunFolder, job: JobConfig, contents: Contents, in_full: bool) -> _Earlier:
    """What is between a run and a job: in the run's own job, and in its checkpoint.

    Args:
        in_full: compare data and weights, too, where the settings differ already and the user may want to go on.

    Raises:
        FoundryError: if the run cannot be read.
    """
    its_own, checkpoint, finished = job_with_family(run.job()), run.latest(), run.status()["state"] == "finished"
    changed = _differences({"config": settings_text(its_own), "step": "0"}, job)
    if its_own.train.steps != job.train.steps and job.train.lr_scheduler != "constant":
        # the rules allow it, but the steps made so far were on the way to another end
        changed["train.steps"] = (
            f"was {its_own.train.steps}, is {job.train.steps}, and the learning rate ({job.train.lr_scheduler}) "
            "depends on it"
        )
    if checkpoint is None:
        if finished:
            changed["checkpoints"] = "none is intact"
        return _Earlier(run, None, finished, changed)
    saved = read_header(checkpoint.state)["__metadata__"]
    changed |= {field: what for field, what in _differences(saved, job).items() if field not in changed}
    if not changed or (in_full and not finished):
        changed |= {field: what for field, what in _differences(saved, job, contents()).items() if field not in changed}
    if not changed and finished and checkpoint.step == job.train.steps:
        changed |= _all_differences(its_own, job)
    return _Earlier(run, checkpoint.step, finished, changed)


def _differences(saved: Mapping[str, str], job: JobConfig, contents: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a job must agree in with what was saved, and does not; without `contents`, only settings are compared."""
    unknown = {"dataset_digest": "", "base_hash": "", "environment": "{}"}
    then = {**unknown, **saved}
    try:
        check_resume({**then, "config": settings_text(job), **(contents or {})}, then)
    except ResumeRefused as refused:
        return refused.changed or {"checkpoint": str(refused)}
    return {}


def _all_differences(then: JobConfig, now: JobConfig) -> dict[str, str]:
    """Every setting that is another, whether training depends on it or not."""
    was, new = (dict(_flat(job.model_dump(mode="json"))) for job in (then, now))
    return {
        field: f"was {was.get(field)}, is {new.get(field)}"
        for field in {**was, **new}
        if was.get(field) != new.get(field)
    }


def _flat(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _contents(root: Path, job: JobConfig) -> Mapping[str, str]:
    """What the data and the base are now, as a checkpoint tells what they were."""
    from .data.cache import CACHE_FOLDER, TensorCache
    from .data.prepare import PreparedData
    from .families.registry import open_base

    base = open_base(job.model)
    data = PreparedData(job, base, TensorCache(root / CACHE_FOLDER))
    return {**digests(data, base), **sampled_hashes(base)}
