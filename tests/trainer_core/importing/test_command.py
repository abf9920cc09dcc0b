"""`lora-foundry import`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trainer_core.cli import main
from trainer_core.config import load_job

from ..complaints import complaint
from .configurations import FOLDER

FLUX = FOLDER / "diffusion_pipe" / "flux.toml"
SDXL = FOLDER / "sd_scripts" / "sdxl_dataset.toml"


def test_it_writes_a_job_and_tells_what_is_lost(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    assert main(["import", str(SDXL), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "sdxl_dataset.data.toml: datasets[1].caption_prefix" in told
    assert "dropped" in told
    assert "sdxl_dataset.toml: network_dim" not in told, "it came over as it was"
    assert f"lora-foundry train {out}" in told
    job = load_job(out)
    assert [Path(one.folder).name for one in job.datasets] == ["art", "reg", "small"]


def test_json_has_the_job_and_all_notes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(FLUX), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["tool"] == "diffusion-pipe"
    assert made["job"]["adapter"]["rank"] == 32
    assert {
        "key": "flux.toml: adapter.rank",
        "kind": "taken",
        "text": "",
        "fields": ["adapter.rank", "adapter.targets"],
    } in (made["notes"])
    assert made["path"] is None
    assert not [*tmp_path.iterdir()], "nothing is written unless --out says so"


def test_what_lies_elsewhere_is_given_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for folder, file in (("here", FLUX), ("there", FLUX.with_suffix(".data.toml"))):
        (tmp_path / folder).mkdir()
        shutil.copy(file, tmp_path / folder)
    given = [str(tmp_path / "here" / "flux.toml"), str(tmp_path / "there" / "flux.data.toml")]
    assert main(["import", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"]["datasets"][0]["weight"] == 5


def test_a_job_that_is_there_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "job.yaml"
    out.write_text("mine", encoding="utf-8")
    assert "stays as it is" in complaint(capsys, "import", str(FLUX), "--out", str(out))
    assert out.read_text(encoding="utf-8") == "mine"


def test_a_file_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such file" in complaint(capsys, "import", str(tmp_path / "none.toml"))
