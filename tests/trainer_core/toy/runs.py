"""Runs of the toys, whole and interrupted."""

from __future__ import annotations

from pathlib import Path

from trainer_core.config import JobConfig
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StepDone
from trainer_core.runs.run_folder import RunFolder


def run_of(job: JobConfig, root: Path) -> TrainingJob:
    return TrainingJob(RunFolder.create(root, job), job)


def files_of(run: RunFolder) -> dict[str, bytes]:
    """All that a run has made but for times: weights, state, pictures, videos."""
    found = [*run.path.glob("checkpoints/step_*/*.safetensors"), *run.path.glob("samples/*/*.*")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in sorted(found)}


def interrupted_it_ends_in_the_same_bytes(job: JobConfig, at: int, folder: Path) -> None:
    """A run that is stopped after a step and goes on, beside one that is not."""
    whole, broken = run_of(job, folder / "whole"), run_of(job, folder / "broken")
    assert whole.run_here(lambda _: None) == "finished"

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == at:
            broken.stop()

    assert broken.run_here(listen) == "stopped"
    assert TrainingJob(broken.run).run_here(lambda _: None) == "finished"
    expected, found = files_of(whole.run), files_of(broken.run)
    last = f"checkpoints/step_{job.train.steps:08d}"
    assert {name for name in expected if name.startswith(last)} <= found.keys()
    assert [name for name, data in expected.items() if found.get(name, data) != data] == []
