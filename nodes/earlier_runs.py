"""Which earlier run a training goes on with. Nothing here is of ComfyUI."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from ..trainer_core.adapters.safetensors_file import read_header
from ..trainer_core.config import JobConfig
from ..trainer_core.errors import FoundryError, ResumeRefused, RunHeld
from ..trainer_core.training.resume_rules import check_resume, digests, sampled_hashes, settings_text
from ..trainer_core.training.run_folder import RunFolder
from ..trainer_core.training.run_state import run_state


def earlier_run(root: Path, job: JobConfig) -> RunFolder | None:
    """The latest run of a job's name that can go on as this job and end as if it had been this job from its start.

    It was cancelled, paused or killed, or failed; or it is finished, and the job has more steps or is the same in all.

    Raises:
        RunHeld: if another process works on it.
    """

    @cache
    def contents() -> Mapping[str, str]:
        return _contents(root, job)

    folders = [path for path in root.glob(f"{glob.escape(job.name)}*") if RunFolder.is_one(path)]
    for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        run = RunFolder(path)
        try:
            if not _goes_on(run, job, contents):
                continue
            owner = run_state(run).owner
        except FoundryError:
            continue  # a run that cannot be read: there is nothing to go on with
        if owner is not None:
            raise RunHeld(
                f"the run {run.name!r} has these settings, and {owner} works on it. Wait for it, stop it with "
                f'lora-foundry tell "{run.path}" stop, or turn continue_stopped off to start another run'
            )
        return run
    return None


def _goes_on(run: RunFolder, job: JobConfig, contents: Callable[[], Mapping[str, str]]) -> bool:
    """Whether the job agrees with the run's own and with its checkpoint in everything that counts."""
    its_own, checkpoint = run.job(), run.latest()
    if its_own.name != job.name or not _agree({"config": settings_text(its_own), "step": "0"}, job):
        return False
    if its_own.train.steps != job.train.steps and job.train.lr_scheduler != "constant":
        return False  # the rules allow it, but the steps made so far were on the way to another end
    finished = run.status()["state"] == "finished"
    if checkpoint is None:
        return not finished
    if finished and checkpoint.step == job.train.steps and its_own != job:
        return False
    saved = read_header(checkpoint.state)["__metadata__"]
    return _agree(saved, job) and _agree(saved, job, contents())


def _agree(saved: Mapping[str, str], job: JobConfig, contents: Mapping[str, str] | None = None) -> bool:
    """Whether a job may go on from what was saved; without `contents`, only settings are compared."""
    unknown = {"dataset_digest": "", "base_hash": "", "environment": "{}"}
    then = {**unknown, **saved}
    try:
        check_resume({**then, "config": settings_text(job), **(contents or {})}, then)
    except ResumeRefused:
        return False
    return True


def _contents(root: Path, job: JobConfig) -> Mapping[str, str]:
    """What the data and the base are now, as a checkpoint tells what they were."""
    from ..trainer_core.data.cache import CACHE_FOLDER, TensorCache
    from ..trainer_core.data.prepare import PreparedData
    from ..trainer_core.families.registry import open_base

    base = open_base(job.model)
    data = PreparedData(job, base, TensorCache(root / CACHE_FOLDER))
    return {**digests(data, base), **sampled_hashes(base)}
