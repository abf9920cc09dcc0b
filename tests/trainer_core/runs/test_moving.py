"""Runs that are renamed, deleted and brought back, with their place in the queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core.config import JobConfig
from trainer_core.errors import ConfigError, RunError, SaveError
from trainer_core.runs.find import find_run, runs_in
from trainer_core.runs.moving import rename_run, restore_run, trash_run, trashed_in
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.run_lock import RunLock

Job = Callable[..., JobConfig]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path / "state"))
    return tmp_path / "runs"


@pytest.fixture
def run(runs: Path, job_of: Job) -> RunFolder:
    return RunFolder.create(runs, job_of(name="one"))


def names(runs: Path) -> list[str]:
    return [run.name for run in runs_in(runs)]


def test_a_renamed_run_is_the_same_under_another_name_in_folder_job_and_queue(runs: Path, run: RunFolder) -> None:
    DeviceQueue("cpu").add(run.path)
    moved = rename_run(run, "two words")
    assert names(runs) == ["two words"]
    assert moved.job() == run.__class__.open(runs / "two words").job()
    assert moved.job().name == "two words"
    assert [one.run for one in DeviceQueue("cpu").tickets()] == [runs / "two words"]
    assert rename_run(moved, "two words").path == moved.path


@pytest.mark.parametrize("name", ["../up", "a/b", "CON", "", ".trash", "a\\b", "x" * 101, "end."])
def test_names_that_are_none_are_refused(runs: Path, run: RunFolder, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        rename_run(run, name)
    assert names(runs) == ["one"]


def test_no_run_takes_anothers_name(runs: Path, run: RunFolder, job_of: Job) -> None:
    RunFolder.create(runs, job_of(name="other"))
    with pytest.raises(RunError, match="other"):
        rename_run(run, "other")
    assert names(runs) == ["one", "other"]


def test_deleted_runs_come_back_the_latest_first_and_never_over_another(runs: Path, job_of: Job) -> None:
    for number in range(3):
        run = RunFolder.create(runs, job_of(name="one"))
        run.log(f"number {number}")
        DeviceQueue("cpu").add(run.path)
        assert trash_run(run).name == "one"
        assert names(runs) == []
    assert DeviceQueue("cpu").tickets() == []
    there = trashed_in(runs)
    assert [one.name for one in there] == ["one"] * 3
    assert len({one.id for one in there}) == 3
    assert all(abs(one.deleted - time.time()) < 60 for one in there)
    assert "number 2" in (restore_run(runs, "one").path / "log.txt").read_text()
    again = restore_run(runs, there[-1].id)
    assert again.name == "one_2"
    assert "number 0" in (again.path / "log.txt").read_text()
    with pytest.raises(RunError, match="holds: one"):
        restore_run(runs, "../one")


def test_a_run_at_work_stays(runs: Path, run: RunFolder) -> None:
    with RunLock(run.path):
        for move in (trash_run, lambda run: rename_run(run, "two")):
            with pytest.raises(RunError, match="process"):
                move(run)
    assert names(runs) == ["one"]
    assert find_run("one", runs).job().name == "one"


def test_a_trash_that_leads_elsewhere_is_not_used(runs: Path, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (runs / ".trash").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(SaveError, match="link"):
        trash_run(run)
    assert names(runs) == ["one"]
