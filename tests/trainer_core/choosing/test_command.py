"""`lora-foundry choose`."""

from __future__ import annotations

import json
import shutil

import pytest

from trainer_core.cli import main
from trainer_core.runs.run_folder import RunFolder

from ..complaints import complaint


@pytest.fixture(autouse=True)
def _beside_its_runs(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parents[1])


def test_choose_prints_a_table_and_json(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such vision model" in complaint(capsys, "choose", "tiny", "--embedding", "nowhere")
    assert "nothing was measured yet" in complaint(capsys, "choose", "tiny", "--known")
    assert main(["choose", "tiny", "--no-draw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "train", "loss", "held-out", "leak", "likeness", "variety"]
    cells = [line.split() for line in lines[2:5]]
    assert [row[0] for row in cells] == ["base", "2", "4"]
    told = {line["step"]: line["validation_loss"] for line in run.metrics() if "validation_loss" in line}
    assert cells[0][1] == f"{told[0]:.4f}"
    assert [row[2] for row in cells[1:]] == [f"{told[step]:.4f}" for step in (2, 4)]
    best = min((2, 4), key=lambda step: told[step])
    assert [row[0] for row in cells if "best" in row] == [str(best)]
    assert f"Step {best} is the best of 2 checkpoints." in lines
    assert main(["choose", "tiny", "--known", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["best"], found["drawn"], found["embedding"]) == ("tiny", best, 0, None)
    assert [one["held_out"] for one in found["checkpoints"]] == [told[2], told[4]]


def test_choose_draws_and_tells_what_it_compared_by(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["choose", "tiny", "--embedding", "statistics", "--pictures", "1", "--device", "cpu"]
    assert main([*asked, "--prompt", "a green [trigger]", "--prompt", "a square"]) == 0
    out = capsys.readouterr().out
    assert "Pictures were compared by the data's own statistics: 2 of each checkpoint." in out
    assert "6 pictures were drawn for it; it took " in out
    assert len([*(run.path / "choosing").glob("*/*.png")]) == 6


def test_choose_of_a_run_without_checkpoints(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run.path / "checkpoints")
    assert "has no intact checkpoint" in complaint(capsys, "choose", "tiny")
    assert "no run 'other'" in complaint(capsys, "choose", "other")
