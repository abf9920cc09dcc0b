"""All runs of a folder at a glance, read again only where something has changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core.config import JobConfig
from trainer_core.runs import summary as module
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.run_lock import RunLock
from trainer_core.runs.summary import RunList, base_name

Job = Callable[..., JobConfig]
DIE_HOLDING = """
import os, sys
from pathlib import Path
from trainer_core.runs.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
os._exit(9)
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path / "state"))
    return tmp_path / "runs"


def line(step: int, loss: float, seconds: float = 2.0) -> dict[str, float]:
    return {"step": step, "loss": loss, "lr": 1e-4, "seconds_per_step": seconds}


def test_a_run_at_work_as_its_files_tell_it(runs: Path, job_of: Job) -> None:
    run = RunFolder.create(runs, job_of(name="one", trigger="zorble", train={"steps": 100}))
    DeviceQueue("cpu").add(run.path)
    listed = RunList(runs)
    assert listed.look()["one"].state == "queued"
    with RunLock(run.path):
        run.write_status("running", 0, 100)
        run.append_metrics(line(1, 0.5, 1.0))
        run.append_metrics(line(2, 0.25, 3.0))
        found = listed.look()["one"]
        assert (found.state, found.step, found.steps) == ("running", 2, 100)
        assert (found.loss, found.seconds_per_step) == (0.25, 2.0)
        assert found.eta_seconds == 98 * 2.0
        assert found.owner
        assert (found.place, found.device, found.family, found.base) == (1, "cpu", "auto", "embedded")
        assert (found.trigger, found.previews, found.resumable) == ("zorble", False, False)
        assert abs(found.created - time.time()) < 60
    run.write_status("stopped", 2, 100)
    found = listed.look()["one"]
    assert (found.owner, found.eta_seconds, found.resumable) == (None, None, True)


def test_what_has_not_changed_is_not_read_again(runs: Path, job_of: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        RunFolder.create(runs, job_of(name=name)).write_status("stopped", 1, 4)
    listed = RunList(runs)
    before, read = listed.look(), []
    state_of = module.run_state
    monkeypatch.setattr(module, "run_state", lambda run: (read.append(run.name), state_of(run))[1])
    assert listed.look() == before
    assert read == []
    RunFolder.open(runs / "two").write_status("finished", 4, 4)
    assert listed.look()["two"].state == "finished"
    assert read == ["two"]


def test_runs_that_come_go_and_are_replaced(runs: Path, job_of: Job) -> None:
    listed = RunList(runs)
    assert listed.look() == {}
    RunFolder.create(runs, job_of(name="one", trigger="first"))
    assert listed.look()["one"].trigger == "first"
    shutil.move(runs / "one", runs / "gone")
    RunFolder.create(runs, job_of(name="one", trigger="second"))
    found = listed.look()
    assert {name: run.trigger for name, run in found.items()} == {"one": "second", "gone": "first"}
    shutil.rmtree(runs / "gone")
    (runs / "no run").mkdir()
    (runs / ".hidden").mkdir()
    (runs / "file").write_text("x", encoding="utf-8")
    assert listed.look().keys() == {"one"}


def test_a_killed_process_is_noticed_though_no_file_changes(runs: Path, job_of: Job) -> None:
    run = RunFolder.create(runs, job_of(name="one"))
    run.write_status("running", 1, 4)
    assert subprocess.run([sys.executable, "-c", DIE_HOLDING, str(run.path)], check=False).returncode == 9
    found = RunList(runs).look()["one"]
    assert (found.state, found.crashed, found.owner, found.resumable) == ("stopped", True, None, True)


def test_damage_is_told_as_far_as_it_can_be(runs: Path, job_of: Job) -> None:
    for name in ("status", "job", "metrics"):
        run = RunFolder.create(runs, job_of(name=name, trigger="zorble"))
        run.save_checkpoint(3, {"lora.safetensors": b"lora", "state.safetensors": b"state"})
        run.append_metrics(line(3, float("nan")))
    (runs / "status" / "run.json").write_bytes(b"")
    (runs / "job" / "job.yaml").write_bytes(b"\xff: &a [*a, ")
    (runs / "metrics" / "metrics.jsonl").write_bytes(b"\x00" * 5000)
    found = RunList(runs).look()
    assert (found["status"].state, found["status"].step) == ("stopped", 3)
    assert (found["job"].trigger, found["job"].state) == (None, "queued")
    assert found["metrics"].loss is None
    assert found["status"].loss is None


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("embedded", "embedded"),
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("/models/unet/flux1.safetensors", "flux1.safetensors"),
        ("C:\\models\\sdxl\\", "sdxl"),
        ("\\\\server\\share\\a.safetensors", "a.safetensors"),
        (None, None),
    ],
)
def test_a_base_is_called_without_its_folders(source: str | None, name: str | None) -> None:
    assert base_name(source) == name
