"""Parts of a base in files of their own: `model.files`, the names that jobs had for them before, and what follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer_core.config import ModelConfig, dump_job, load_job, validated
from trainer_core.errors import BaseModelError, ConfigError
from trainer_core.families.registry import family_names, family_spec, file_parts, open_base
from trainer_core.families.sources.source import components_of
from trainer_core.training.resume_rules import check_resume, settings_text

OLD = """\
name: old
model:
  source: embedded
  device: cpu
  text_encoder: clip_l.safetensors
  text_encoder_2:
  vae: vae.safetensors
datasets:
- folder: pictures
"""


def test_a_job_with_the_former_names_is_read_and_written_with_files(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(OLD, encoding="utf-8")
    job = load_job(path)
    expected = {
        part: str(tmp_path / f"{file}.safetensors") for part, file in (("text_encoder", "clip_l"), ("vae", "vae"))
    }
    assert job.model.files == expected
    written = dump_job(job)
    assert "text_encoder_2" not in written
    path.write_text(written, encoding="utf-8")
    assert load_job(path) == job


def test_files_say_more_than_former_names() -> None:
    given = {"text_encoder": "old", "files": {"text_encoder": "new", "vae": ""}}
    assert validated(ModelConfig, given).files == {"text_encoder": "new"}
    assert ModelConfig(files={"vae": "a"}).but(vae="b").files == {"vae": "a"}


@pytest.mark.parametrize("files", ["clip.safetensors", ["a"], {"vae": 3}, {"vae": True}])
def test_files_that_are_none(files: object) -> None:
    with pytest.raises(ConfigError, match="files"):
        validated(ModelConfig, {"files": files})


def test_a_part_that_the_family_has_not(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(BaseModelError, match=r"model.files.text_encoder: the embedded base has all its parts"):
        open_base(ModelConfig(files={"text_encoder": str(file)}))


def test_parts_are_named_by_the_specs_alone() -> None:
    """What may be a file, and what is downloaded, for the families that there are: by hand."""
    assert list(file_parts()) == ["text_encoder", "text_encoder_2", "vae"]
    assert {name: sorted(components_of(family_spec(name))) for name in family_names()} == {
        "flux1": ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"],
        "flux1_kontext": [
            "scheduler",
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "transformer",
            "vae",
        ],
        "sd15": ["scheduler", "text_encoder", "tokenizer", "unet", "vae"],
        "sdxl": ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"],
    }


def test_a_checkpoint_from_before_goes_on(tmp_path: Path) -> None:
    """Its settings have the former fields; the files may lie elsewhere now, as their contents are compared."""
    path = tmp_path / "job.yaml"
    path.write_text(OLD, encoding="utf-8")
    now = {
        "config": settings_text(load_job(path)),
        "base_hash": "b",
        "encoders_hash": "e",
        "dataset_digest": "d",
        "environment": "{}",
    }
    config = json.loads(now["config"])
    files = config["model"].pop("files")
    config["model"] |= {
        "text_encoder": files["text_encoder"],
        "text_encoder_2": None,
        "vae": "/elsewhere/vae.safetensors",
    }
    assert check_resume(now, {**now, "config": json.dumps(config), "step": "3"}) == []
