"""Each of the configurations is read, and its job trains two steps on the demo's data.

On the embedded base, or on a small SD 1.5 where it adapts convolutions or text encoders, which that base has not.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from trainer_core.api import import_config
from trainer_core.config import DatasetConfig, JobConfig, MemoryConfig, load_job
from trainer_core.embedded.demo_data import FOLDER
from trainer_core.job import TrainingJob
from trainer_core.safetensors_file import read_header

from ..conftest import MODEL, silent
from ..families.small_models import small_sd
from .configurations import MAIN


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs, whose cache all jobs share."""
    return tmp_path_factory.mktemp("runs")


class Folders(NamedTuple):
    """What configurations name and the demo has not."""

    unet: Path
    """A small SD 1.5."""
    masks: Path
    """A mask for each of the demo's pictures, whose left half is trained on."""
    held_out: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Folders:
    unet = small_sd(tmp_path_factory.mktemp("base") / "sd15")
    masks = tmp_path_factory.mktemp("masks")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    for picture in FOLDER.glob("*.png"):
        mask.save(masks / picture.name)
    return Folders(unet, masks, pictures)


def test_how_many_there_are() -> None:
    counts = Counter(path.parent.name for path in MAIN)
    assert counts == {"ai_toolkit": 10, "diffusion_pipe": 10, "sd_scripts": 10, "musubi_tuner": 5}


@pytest.mark.parametrize("path", MAIN, ids=[f"{path.parent.name}-{path.stem}" for path in MAIN])
def test_it_trains(path: Path, runs: Path, folders: Folders, tmp_path: Path) -> None:
    imported = import_config(path)
    file = tmp_path / "job.yaml"
    file.write_text(imported.text, encoding="utf-8")
    job = on_a_small_base(load_job(file), folders)
    training = TrainingJob.new(runs, job)
    assert training.run_here(silent) == "finished"
    checkpoint = training.run.latest()
    assert checkpoint is not None
    assert checkpoint.step == 2
    names = " ".join(read_header(checkpoint.lora))
    assert ("_te_" in names) == job.adapter.text_encoders
    assert ("conv1" in names) == bool(job.adapter.conv_rank)


def test_some_adapt_convolutions_and_text_encoders() -> None:
    kinds = [(bool(made.conv_rank), made.text_encoders) for made in (import_config(path).job.adapter for path in MAIN)]
    assert {(True, True), (True, False), (False, True)} <= {*kinds}


def on_a_small_base(job: JobConfig, folders: Folders) -> JobConfig:
    """The job with another base and other data, without previews: what depends on these goes, all the rest stays."""
    of_unet = bool(job.adapter.conv_rank) or job.adapter.text_encoders
    steps = {"steps": 2, "warmup_steps": min(2, job.train.warmup_steps), "stages": "all"}
    return job.model_copy(
        update={
            "model": MODEL.but(source=str(folders.unet)) if of_unet else MODEL,
            "adapter": job.adapter.but(warm_start=None),
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
