"""`export` from the command line: runs, their checkpoints, files, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainer_core.cli import main
from trainer_core.config import JobConfig
from trainer_core.job import TrainingJob

from .complaints import complaint


@pytest.fixture
def run(
    job_of: Callable[..., JobConfig], train: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run of two checkpoints; the current folder is an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job = job_of("tiny", train={"steps": 2, "learning_rate": 0.01}, save={"every": 1, "keep": 9})
    return train(job).run.path


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
def test_a_run_is_exported_to_where_the_user_is(form: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["export", str(run), "--to", form, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = Path(told["path"])
    assert told["to"] == form
    assert made == Path("tiny_peft" if form == "peft" else f"tiny_{form}.safetensors")
    weights = load_file(made / "adapter_model.safetensors" if form == "peft" else made)
    prefix = {"diffusers": "transformer.", "kohya": "lora_unet_", "peft": "base_model.model."}[form]
    assert weights
    assert all(name.startswith(prefix) for name in weights)


def test_checkpoints_and_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "diffusers", "--step", "1"]) == 0
    assert Path("tiny_1_steps_diffusers.safetensors").is_file()
    file = run / "checkpoints" / "step_00000002" / "lora.safetensors"
    assert main(["export", str(file), "--to", "diffusers", "--out", "mine.safetensors"]) == 0
    assert Path("mine.safetensors").is_file()
    for options, message in (
        (["--step", "7"], "has no checkpoint of step 7; there are: 1, 2"),
        (["--step", "best"], "no checkpoint was validated"),
        (["--out", "mine.safetensors"], "is there already, and is not overwritten"),
    ):
        assert message in complaint(capsys, "export", str(run), "--to", "diffusers", *options)
    assert "this is a file" in complaint(capsys, "export", str(file), "--to", "kohya", "--step", "1")
