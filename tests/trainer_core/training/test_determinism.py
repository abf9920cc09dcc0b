"""The same seed gives the same file, byte for byte; looking on does not change it, nothing global is touched."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer_core.config import JobConfig, dump_job
from trainer_core.families import sources
from trainer_core.sampling import preview
from trainer_core.training.events import Event, SampleReady
from trainer_core.training.job import TrainingJob

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]
PREVIEWS = {"prompts": ("a [trigger]", "a green cat"), "every": 1, "before_training": True}
EVERYTHING: dict[str, Any] = {
    "dataset": {"flip_x": True, "crop": "random", "caption_dropout": 0.3, "shuffle_tags": True},
    "adapter": {"dropout": 0.2, "alpha": 1.0},
    "train": {"steps": 4, "batch_size": 2, "gradient_accumulation": 2, "ema_decay": 0.9, "stage_boundaries": (0.5,)},
}
"""A job in which all that draws numbers is on."""


def lora(training: TrainingJob) -> bytes:
    latest = training.run.latest()
    assert latest is not None
    return latest.lora.read_bytes()


def weights(training: TrainingJob) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(lora(training))


def test_the_same_seed_gives_the_same_bytes(job_of: Jobs, train: Train, tmp_path: Path) -> None:
    """From a full cache and from an empty one, whatever the global generators stand at."""
    first = train(job_of(**EVERYTHING))
    random.seed(1), np.random.seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert lora(train(job_of(**EVERYTHING))) == lora(first)
    assert lora(train(job_of(**EVERYTHING), root=tmp_path / "elsewhere")) == lora(first)


def test_another_seed_gives_other_weights(job_of: Jobs, train: Train) -> None:
    one, other = weights(train(job_of())), weights(train(job_of(train={"seed": 43})))
    for name, value in one.items():
        if not name.endswith(".alpha"):
            assert not torch.equal(value, other[name]), name


def test_another_process_gives_the_same_bytes(job_of: Jobs, train: Train, tmp_path: Path) -> None:
    here = train(job_of(**EVERYTHING))
    (tmp_path / "job.yaml").write_text(dump_job(job_of(**EVERYTHING)), encoding="utf-8")
    code = (
        "import hashlib, sys, torch; from pathlib import Path\n"
        "import trainer_core.families.sources as sources\n"
        "from trainer_core.config import load_job\n"
        "from trainer_core.training.job import TrainingJob\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "sources.EMBEDDED = Path(sys.argv[2])\n"
        "training = TrainingJob.new(Path(sys.argv[1]) / 'other', load_job(Path(sys.argv[1]) / 'job.yaml'))\n"
        "training.run_here(lambda event: None)\n"
        "print(hashlib.sha256(training.run.latest().lora.read_bytes()).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(sources.EMBEDDED)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == hashlib.sha256(lora(here)).hexdigest(), done.stderr[-2000:]


def test_previews_do_not_change_training(job_of: Jobs, train: Train) -> None:
    plain, watched = train(job_of(**EVERYTHING)), train(job_of(**EVERYTHING, sample=PREVIEWS))
    assert len(list((watched.run.path / "samples").rglob("*.png"))) == 10
    one, other = weights(plain), weights(watched)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_how_often_is_saved_and_logged_changes_nothing(job_of: Jobs, train: Train) -> None:
    one, other = weights(train(job_of())), weights(train(job_of(save={"every": 1}, train={"log_every": 3})))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_place_and_name_of_the_folder_change_nothing(
    job_of: Jobs, train: Train, pictures: Path, tmp_path: Path
) -> None:
    import shutil

    moved = shutil.copytree(pictures, tmp_path / "moved" / pictures.name)
    assert lora(train(job_of())) == lora(train(job_of(dataset={"folder": str(moved)})))


def test_global_random_state_is_as_it_was(job_of: Jobs, train: Train) -> None:
    """Through a whole run: loading, injecting, dropout, previews, checkpointing, saving."""
    job = job_of(**{**EVERYTHING, "train": {"steps": 2, "gradient_checkpointing": True}}, sample=PREVIEWS)
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    when: dict[str, Event] = {}

    def listen(event: Event) -> None:
        if not torch.equal(torch.get_rng_state(), torch_state):
            when.setdefault("first seen changed at", event)

    train(job, listen)
    assert when == {}
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state


def test_global_settings_are_as_they_were(job_of: Jobs, train: Train) -> None:
    """ComfyUI goes on in the same process: gradients, default dtype, threads, TF32 …"""

    def settings() -> tuple:
        return (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.is_inference_mode_enabled(),
        )

    before = settings()
    train(job_of(sample=PREVIEWS))
    assert settings() == before


def test_a_preview_of_the_run_is_what_preview_draws(job_of: Jobs, train: Train) -> None:
    """The picture beside a checkpoint and the one drawn from its LoRA: the same, but for the last bit of a pixel."""
    from PIL import Image

    job = job_of(sample={"prompts": ("a [trigger]", "a green cat"), "steps": 4})
    pictures: list[Path] = []
    training = train(job, lambda event: pictures.append(event.path) if isinstance(event, SampleReady) else None)
    latest = training.run.latest()
    assert latest is not None
    drawn = preview(job.model, ["a zorble", "a green cat"], lora=latest.lora, sample=job.sample)
    assert len(pictures) == len(drawn) == 2
    for path, picture in zip(pictures, drawn, strict=True):
        difference = np.asarray(Image.open(path)).astype(int) - np.asarray(picture).astype(int)
        assert abs(difference).max() <= 1
