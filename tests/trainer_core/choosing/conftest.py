"""A tiny run to choose from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainer_core.config import DatasetConfig, JobConfig, SampleConfig, SaveConfig, TrainConfig, ValidationConfig
from trainer_core.job import TrainingJob
from trainer_core.runs.run_folder import RunFolder

from ..conftest import MODEL, silent

PROMPTS = ("a red [trigger]", "a blue circle")


def job_with(pictures: Path, **changed: object) -> JobConfig:
    job = JobConfig(
        name="tiny",
        model=MODEL,
        datasets=(DatasetConfig(folder=str(pictures), resolutions=(64,), trigger="zorble"),),
        train=TrainConfig(steps=4, learning_rate=1e-2, gradient_checkpointing=False),
        save=SaveConfig(every=2),
        sample=SampleConfig(prompts=PROMPTS, every=2, steps=2),
        validation=ValidationConfig(every=2, share=0.25, draws=1),
    )
    return job.model_copy(update=changed)


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with checkpoints at steps 2 and 4, validated and with previews of two prompts; tests must not change it."""
    training = TrainingJob.new(tmp_path_factory.mktemp("runs"), job_with(pictures), queue_up=False)
    training.run_here(silent)
    return training.run


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it."""
    return RunFolder.open(Path(shutil.copytree(trained.path, tmp_path / "runs" / "tiny")))
