"""`lora-foundry plan`: a job's memory before there is anything of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from trainer_core.cli import main
from trainer_core.config import dump_job
from trainer_core.demo import plain_job
from trainer_core.families.sources.source import EMBEDDED


def test_a_job_is_planned_without_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_core.families.sources.loading.fill", lambda *_: pytest.fail("weights are loaded"))
    monkeypatch.setattr("trainer_core.memory.planning._pixel_phases", lambda *_: {})
    job = tmp_path / "job.yaml"
    job.write_text(dump_job(plain_job()))
    assert main(["plan", str(job), "--memory", "8", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    (row,) = told["rows"]  # without gradient checkpointing there is nothing to choose
    assert row["setting"] == "no gradient checkpointing"
    assert told["chosen"] == [{"memory_gb": 8.0, "row": row}]
    with safe_open(EMBEDDED / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        weights = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert row["memory_gb"]["weights"] * 2**30 == pytest.approx(4 * weights, rel=0.001)
    assert told["phases_gb"].keys() == {"encoding captions"}
    assert list(tmp_path.iterdir()) == [job]
