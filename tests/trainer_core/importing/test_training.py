"""Each of the thirty configurations is read, and its job trains two steps on the embedded base and the demo's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_core.api import import_config
from trainer_core.config import DatasetConfig, JobConfig, MemoryConfig, load_job
from trainer_core.embedded.demo_data import FOLDER
from trainer_core.job import TrainingJob

from ..conftest import MODEL, silent
from .configurations import MAIN


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs, whose cache all jobs share."""
    return tmp_path_factory.mktemp("runs")


def test_there_are_thirty() -> None:
    assert [path.parent.name for path in MAIN] == [
        tool for tool in ("ai_toolkit", "diffusion_pipe", "sd_scripts") for _ in range(10)
    ]


@pytest.mark.parametrize("path", MAIN, ids=[f"{path.parent.name}-{path.stem}" for path in MAIN])
def test_it_trains(path: Path, runs: Path, tmp_path: Path) -> None:
    imported = import_config(path)
    file = tmp_path / "job.yaml"
    file.write_text(imported.text, encoding="utf-8")
    job = on_the_embedded_base(load_job(file))
    training = TrainingJob.new(runs, job)
    assert training.run_here(silent) == "finished"
    checkpoint = training.run.latest()
    assert checkpoint is not None
    assert checkpoint.step == 2


def on_the_embedded_base(job: JobConfig) -> JobConfig:
    """The job with another base and other data: what depends on these goes, and all the rest stays."""
    steps = {"steps": 2, "warmup_steps": min(2, job.train.warmup_steps)}
    small = {"prompts": job.sample.prompts[:1], "width": 64, "height": 64, "steps": 1, "controls": [], "frames": None}
    return job.model_copy(
        update={
            "model": MODEL,
            "adapter": job.adapter.but(conv_rank=None, text_encoders=False, warm_start=None),
            "datasets": tuple(map(of_the_demo, job.datasets)),
            "train": job.train.but(**steps),
            "sample": job.sample.but(**small),
            "memory": MemoryConfig(),
        }
    )


def of_the_demo(dataset: DatasetConfig) -> DatasetConfig:
    """The set with the demo's pictures, which are 64 pixels wide; where there are masks, they are these too."""
    masks = str(FOLDER) if dataset.mask_folder else None
    files = {"folder": str(FOLDER), "mask_folder": masks, "control_folders": [], "caption_extension": "txt"}
    changed: DatasetConfig = dataset.but(**files, resolutions=[64], kohya_folders=False)
    return changed
