"""Each of the thirty configurations is read, and its job trains two steps on the embedded base and the demo's data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

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


class Folders(NamedTuple):
    """What configurations name and the demo has not."""

    masks: Path
    """A mask for each of the demo's pictures, whose left half is trained on."""
    held_out: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Folders:
    masks = tmp_path_factory.mktemp("masks")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    for picture in FOLDER.glob("*.png"):
        mask.save(masks / picture.name)
    return Folders(masks, pictures)


def test_there_are_thirty() -> None:
    assert [path.parent.name for path in MAIN] == [
        tool for tool in ("ai_toolkit", "diffusion_pipe", "sd_scripts") for _ in range(10)
    ]


@pytest.mark.parametrize("path", MAIN, ids=[f"{path.parent.name}-{path.stem}" for path in MAIN])
def test_it_trains(path: Path, runs: Path, folders: Folders, tmp_path: Path) -> None:
    imported = import_config(path)
    file = tmp_path / "job.yaml"
    file.write_text(imported.text, encoding="utf-8")
    job = on_the_embedded_base(load_job(file), folders)
    training = TrainingJob.new(runs, job)
    assert training.run_here(silent) == "finished"
    checkpoint = training.run.latest()
    assert checkpoint is not None
    assert checkpoint.step == 2


def on_the_embedded_base(job: JobConfig, folders: Folders) -> JobConfig:
    """The job with another base and other data, without previews: what depends on these goes, all the rest stays."""
    steps = {"steps": 2, "warmup_steps": min(2, job.train.warmup_steps), "stages": "all"}
    return job.model_copy(
        update={
            "model": MODEL,
            "adapter": job.adapter.but(conv_rank=None, text_encoders=False, warm_start=None),
            "datasets": tuple(of_the_demo(dataset, folders) for dataset in job.datasets),
            "train": job.train.but(**steps),
            "sample": job.sample.but(prompts=[], controls=[], frames=None),
            "memory": MemoryConfig(),
        }
    )


def of_the_demo(dataset: DatasetConfig, folders: Folders) -> DatasetConfig:
    """The set with the demo's pictures, which are 64 pixels wide."""
    folder = folders.held_out if dataset.role == "validation" else FOLDER
    masks = str(folders.masks) if dataset.mask_folder else None
    files = {"folder": str(folder), "mask_folder": masks, "control_folders": [], "caption_extension": "txt"}
    of_base = {"resolutions": [64], "first_frame": False, "kohya_folders": False}
    changed: DatasetConfig = dataset.but(**files, **of_base)
    return changed
