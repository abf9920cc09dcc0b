"""What a reader is told about a run, beside what run.json says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core.config import JobConfig
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.run_lock import RunLock
from trainer_core.runs.status import run_state

DIE_HOLDING = """
import os, sys
from pathlib import Path
from trainer_core.runs.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
os._exit(9)
"""


@pytest.fixture
def run(job_of: Callable[..., JobConfig], tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", job_of(train={"steps": 10}))


def leave_by_dying(run: RunFolder) -> None:
    assert subprocess.run([sys.executable, "-c", DIE_HOLDING, str(run.path)]).returncode == 9


@pytest.mark.parametrize("state", ["queued", "running", "paused", "stopped", "finished", "failed"])
def test_while_a_process_works_on_it_the_run_is_what_it_says(state: str, run: RunFolder) -> None:
    run.write_status(state, 3, 10, "why" if state == "failed" else None)
    with RunLock(run.path):
        found = run_state(run)
    assert (found.state, str(found), found.crashed) == (state, state, False)
    assert found.owner is not None
    assert found.owner.pid == os.getpid()
    assert not found.resumable, "somebody is at it"
    assert (found.step, found.steps, found.error) == (3, 10, "why" if state == "failed" else None)


@pytest.mark.parametrize(
    ("state", "seen", "resumable"),
    [
        ("queued", "queued", True),
        ("running", "stopped (crashed)", True),
        ("paused", "stopped (crashed)", True),
        ("stopped", "stopped", True),
        ("failed", "failed", True),
        ("finished", "finished", False),
    ],
)
def test_after_its_process_died(state: str, seen: str, resumable: bool, run: RunFolder) -> None:
    run.write_status(state, 3, 10)
    leave_by_dying(run)
    found = run_state(run)
    assert (str(found), found.resumable, found.owner) == (seen, resumable, None)
    assert found.crashed == ("crashed" in seen)
    assert found.state == seen.split()[0]


def test_a_run_that_was_left_paused_has_not_crashed(run: RunFolder) -> None:
    with RunLock(run.path):
        run.write_status("paused", 3, 10)
    assert str(run_state(run)) == "paused"
    assert run_state(run).resumable


def test_a_run_that_ends_while_one_looks_has_not_crashed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says running, then finishes and frees the lock, then the lock is looked at."""
    run.write_status("running", 9, 10)
    told = RunFolder.status

    def status(self: RunFolder) -> dict[str, object]:
        before = told(self)
        if before["state"] == "running":
            self.write_status("finished", 10, 10)
        return before

    monkeypatch.setattr(RunFolder, "status", status)
    assert str(run_state(run)) == "finished"


def test_the_step_of_a_run_at_work_is_the_last_logged(run: RunFolder) -> None:
    run.write_status("running", 4, 10)
    (run.path / "metrics.jsonl").write_text('{"step": 5}\n' * 1000 + '{"step": 6}\n{"ste', encoding="utf-8")
    with RunLock(run.path):
        assert run_state(run).step == 6
    assert run_state(run).step == 4, "a crashed run goes on from what was saved"


@pytest.mark.parametrize("nonsense", ["", "[]", '{"state": "running", "step": "x"}', "[" * 100_000])
def test_nonsense_in_run_json_is_survived(nonsense: str, run: RunFolder) -> None:
    (run.path / "run.json").write_text(nonsense, encoding="utf-8")
    (run.path / "metrics.jsonl").write_text(nonsense, encoding="utf-8")
    assert str(run_state(run)) == "stopped"
    with RunLock(run.path):
        assert run_state(run).owner is not None
