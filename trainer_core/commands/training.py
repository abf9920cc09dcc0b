"""`train` and `resume`: a job on this thread, in a new run or going on with one."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ..config import JobConfig, load_job, resolved, validated
from ..config.yaml_text import read_yaml
from ..errors import ConfigError
from ..job import TrainingJob
from ..runs.run_folder import RunFolder
from ..runs.status import run_state
from . import OK
from .following import follow
from .runs import check_free, find_run
from .terminal import quiet_libraries, say


def train(args: argparse.Namespace) -> int:
    """Trains a job from YAML in a new run folder."""
    job = load_job(args.job)
    quiet_libraries()  # takes seconds, in which Ctrl-C should find no run yet
    return follow(TrainingJob.new(args.runs, job, queue_up=args.queue_up), args.runs).exit_code


def resume(args: argparse.Namespace) -> int:
    """Continues a run from its last intact checkpoint; a finished run has nothing left to do, unless it is changed."""
    run = find_run(args.run, args.runs)
    state = run_state(run)
    check_free(run, state, args.runs)
    if state.state == "finished" and not args.job and not args.set:
        say(f"{run.path} is finished already. For more steps: --set train.steps=N")
        return OK
    fields = [assignment.partition("=")[0].strip() for assignment in args.set]
    job = changed(load_job(args.job) if args.job else run.job(), args.set)
    accept = {*args.accept, *_wished(run, fields)}
    return follow(TrainingJob(run, job, accept, queue_up=args.queue_up), args.runs).exit_code


def changed(job: JobConfig, assignments: list[str]) -> JobConfig:
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
    parts = re.findall(r"([^.\[\]]+)|\[(\d{1,6})\]", field) or [("", "")]
    *way, last = [int(index) if index else name for name, index in parts]
    place: Any = data
    try:
        for part in way:
            place = place[part]
        if isinstance(place, list) != isinstance(last, int):
            raise TypeError
        place[last] = value  # if there is no setting of that name, the config tells
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"--set {field}: a job has no such setting. Its job.yaml shows all there are") from None


def _wished(run: RunFolder, fields: list[str]) -> set[str]:
    """Which of the fields that were set need the user's wish to change: setting them says it.

    Raises:
        ConfigError: for fields that may not change once there is a checkpoint; told before everything is loaded.
    """
    from ..training.resume_rules import DATA, MAY_BE_ACCEPTED, MAY_CHANGE

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
