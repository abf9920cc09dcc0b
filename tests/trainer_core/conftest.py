"""Fixtures of the core's tests: small pictures, small jobs for the embedded base, runs without their events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from trainer_core.config import (
    AdapterConfig,
    DatasetConfig,
    JobConfig,
    ModelConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
)
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event

if TYPE_CHECKING:
    from trainer_core.families.base import Base
    from trainer_core.training.loop import Trainer

MODEL = ModelConfig(source="embedded", device="cpu")
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four 64-pixel pictures of coloured noise, with captions that hold `[trigger]`; tests must not change them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(7)
    for colour in COLOURS:
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
        image.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} [trigger]", encoding="utf-8")
    return folder


@pytest.fixture
def job_of(pictures: Path) -> Callable[..., JobConfig]:
    """Makes a small job; settings come by section, such as train={"steps": 2}, and `dataset` or `datasets`."""

    def make(name: str = "tiny", dataset: dict[str, Any] | None = None, **sections: Any) -> JobConfig:
        folder = {"folder": str(pictures), "resolutions": (64,), "trigger": "zorble"}
        datasets = sections.pop("datasets", [dataset or {}])
        train = {"steps": 3, "learning_rate": 1e-2, "gradient_checkpointing": False, **sections.pop("train", {})}
        sample = {"steps": 2, "before_training": False, **sections.pop("sample", {})}
        return JobConfig(
            name=name,
            model=MODEL.but(**sections.pop("model", {})),
            adapter=AdapterConfig(**{"rank": 2, **sections.pop("adapter", {})}),
            datasets=tuple(DatasetConfig(**{**folder, **one}) for one in datasets),
            train=TrainConfig(**train),
            save=SaveConfig(**sections.pop("save", {})),
            sample=SampleConfig(**sample),
            **sections,
        )

    return make


@pytest.fixture(scope="session")
def base() -> Base:
    """The embedded base with its text encoders and VAE loaded; tests must not free them."""
    from trainer_core.families.registry import open_base

    base = open_base(MODEL)
    base.load_text_encoders()
    base.load_vae()
    return base


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a trainer as a job's thread does, stopped before its first step."""

    def make(job: JobConfig, root: Path | None = None) -> Trainer:
        from trainer_core.data.cache import TensorCache
        from trainer_core.data.prepare import PreparedData
        from trainer_core.families.registry import open_base
        from trainer_core.runs.requests import Requests
        from trainer_core.runs.run_folder import RunFolder
        from trainer_core.training.loop import Trainer

        root = root or tmp_path / "runs"
        run, base = RunFolder.create(root, job), open_base(job.model)
        data = PreparedData(job, base, TensorCache(root / ".cache"))
        prompts = [prompt.replace("[trigger]", job.preview_trigger or "") for prompt in job.sample.prompts]
        data.encode_texts([*prompts, ""] if prompts else [], silent)
        data.encode_images(silent)
        return Trainer(run, job, base, data, silent, Requests(run.path))

    return make


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., TrainingJob]:
    """Runs a job to its end on this thread, in a new run or going on with one."""

    def run(job: JobConfig, listener: Callable[[Event], None] | None = None, root: Path | None = None) -> TrainingJob:
        training = TrainingJob.new(root or tmp_path / "runs", job)
        training.run_here(listener or silent)
        return training

    return run


def silent(*_: object) -> None:
    """Hears events and progress, and says nothing."""
