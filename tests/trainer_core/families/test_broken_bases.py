"""Weights that are missing or cut off: told in one message, never filled in at random."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from trainer_core.config import DatasetConfig, JobConfig, ModelConfig
from trainer_core.errors import BaseModelError, ConfigError, DatasetError, FoundryError
from trainer_core.families.registry import open_base
from trainer_core.families.sources.source import EMBEDDED
from trainer_core.job import TrainingJob

PARTS = {
    "text_encoder": ("model.safetensors", "load_text_encoders"),
    "text_encoder_2": ("model.safetensors", "load_text_encoders"),
    "vae": ("diffusion_pytorch_model.safetensors", "load_vae"),
    "transformer": ("diffusion_pytorch_model.safetensors", "load_denoiser"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(EMBEDDED, tmp_path / "base")


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_weight_is_named(part: str, folder: Path) -> None:
    file, load = PARTS[part]
    weights = load_file(folder / part / file)
    # T5 keeps its embedding twice and finds either: take a weight from the middle of a block
    gone = next(name for name in sorted(weights) if name.endswith("weight") and ".0." in name)
    del weights[gone]
    save_file(weights, folder / part / file, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"incomplete|cannot be loaded") as caught:
        getattr(open_base(ModelConfig(source=str(folder), device="cpu")), load)()
    assert part in str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_a_truncated_file_is_named(part: str, folder: Path) -> None:
    file, load = PARTS[part]
    path = folder / part / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BaseModelError, match=part):
        getattr(open_base(ModelConfig(source=str(folder), device="cpu")), load)()


def test_clip_is_the_one_that_was_trained(folder: Path) -> None:
    """Published CLIPs name their weights `text_model.…`; without that, transformers 4 starts from random ones."""
    assert all(name.startswith("text_model.") for name in load_file(folder / "text_encoder" / "model.safetensors"))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"model": {"source": "no/where/at/all"}}, BaseModelError),
        ({"model": {"family": "flux7"}}, ConfigError),
        ({"datasets": [{"folder": "no such folder"}]}, DatasetError),
        ({"sample": {"width": 65}}, ConfigError),
    ],
)
def test_a_job_that_cannot_start_leaves_no_folder(
    change: dict, kind: type[FoundryError], tmp_path: Path, tiny_folder: Path
) -> None:
    job = JobConfig(name="x", datasets=(DatasetConfig(folder=str(tiny_folder), resolutions=(64,)),))
    with pytest.raises(kind):
        TrainingJob.new(tmp_path / "runs", job.but(**change))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    from trainer_core.embedded.demo_data import FOLDER

    return shutil.copytree(FOLDER, tmp_path / "pictures")
