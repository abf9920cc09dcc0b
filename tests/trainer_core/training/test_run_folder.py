"""The run folder: checkpoints whole or absent, damage noticed, nothing lost to a failure."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core import files
from trainer_core.config import JobConfig, dump_job
from trainer_core.errors import RunError, SaveError
from trainer_core.training import run_folder
from trainer_core.training.run_folder import Checkpoint, RunFolder

FILES = {"lora.safetensors": b"lora" * 10, "state.safetensors": b"state" * 100}


@pytest.fixture
def run(tmp_path: Path, job_of: Callable[..., JobConfig]) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", job_of())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(run: RunFolder) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


# --- making and opening ----------------------------------------------------------------------------------------------


def test_a_new_run(run: RunFolder, job_of: Callable[..., JobConfig]) -> None:
    assert run.name == "tiny"
    assert sorted(path.name for path in run.path.iterdir()) == ["job.yaml", "run.json"]
    assert run.job() == job_of()
    status = run.status()
    assert (status["state"], status["step"], status["steps"], status["error"]) == ("queued", 0, 3, None)
    assert (run.metrics(), run.checkpoints(), run.latest(), run.sample_paths()) == ([], [], None, [])


def test_the_best_checkpoint_is_the_kept_one_that_validated_lowest(run: RunFolder) -> None:
    for step, loss in ((0, 0.1), (2, 0.5), (4, 0.3), (6, 0.4), (8, 0.2)):
        run.append_metrics({"step": step, "validation_loss": loss})
    assert run.best() is None
    for step in (2, 4, 6, 7):  # 0 and 8 were validated and are not kept, 7 was never validated
        run.save_checkpoint(step, FILES)
    best = run.best()
    assert best is not None
    assert best.step == 4
    run.append_metrics({"step": 7, "loss": 0.5})
    assert run.losses() == [0.5]


def test_names_are_not_taken_twice(tmp_path: Path, job_of: Callable[..., JobConfig]) -> None:
    (tmp_path / "tiny").mkdir()
    assert [RunFolder.create(tmp_path, job_of()).name for _ in range(3)] == ["tiny_2", "tiny_3", "tiny_4"]
    assert list((tmp_path / "tiny").iterdir()) == []


def test_a_runs_job_is_the_same_wherever_it_is_read(
    tmp_path: Path, job_of: Callable[..., JobConfig], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder means the one that it meant when the run was made."""
    monkeypatch.chdir(pictures.parent)
    run = RunFolder.create(tmp_path / "runs", job_of(dataset={"folder": pictures.name}))
    monkeypatch.chdir(tmp_path)
    assert Path(RunFolder.open(run.path).job().datasets[0].folder) == pictures


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=path.name):
            RunFolder.open(path)


def test_a_root_that_is_a_file(tmp_path: Path, job_of: Callable[..., JobConfig]) -> None:
    (tmp_path / "runs").write_text("x")
    with pytest.raises(SaveError, match="runs"):
        RunFolder.create(tmp_path / "runs", job_of())
    with pytest.raises(SaveError, match="runs"):
        RunFolder.create(tmp_path / "runs" / "deeper", job_of())


def test_a_run_that_cannot_be_written_leaves_no_folder(
    tmp_path: Path, job_of: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SaveError, match="disk is full"):
        RunFolder.create(tmp_path / "runs", job_of())
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "{", "\0\0\0"])
def test_a_damaged_status_is_told(text: str | None, run: RunFolder) -> None:
    (run.path / "run.json").unlink() if text is None else (run.path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json"):
        run.status()


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_survive_a_cut_line_and_are_cut_back(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.truncate_metrics(2)
    run.append_metrics({"step": 3, "loss": 0.25})
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
    ]


def test_metrics_after_a_power_cut(run: RunFolder) -> None:
    """File systems leave blocks of zeros, or of anything, at the end of what was being appended."""
    run.append_metrics({"step": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 100 + b"\n\xff\xfe\n")
    assert run.metrics() == [{"step": 1}]
    run.truncate_metrics(1)
    assert (run.path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint(run: RunFolder) -> None:
    checkpoint = run.save_checkpoint(250, FILES)
    assert checkpoint == Checkpoint(250, run.path / "checkpoints" / "step_00000250")
    assert checkpoint.lora.read_bytes() == FILES["lora.safetensors"]
    assert checkpoint.state.read_bytes() == FILES["state.safetensors"]
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    assert manifest["step"] == 250
    assert manifest["files"]["lora.safetensors"]["size"] == 40
    # printf 'lora%.0s' {1..10} | sha256sum
    assert manifest["files"]["lora.safetensors"]["sha256"].startswith("8aaad4103d75f7af")
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step_00000250"]
    assert run.latest() == checkpoint


def test_the_manifest_is_written_last(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = run_folder.write_durably

    def record(path: Path, data: bytes) -> None:
        written.append(path.name)
        original(path, data)

    monkeypatch.setattr(run_folder, "write_durably", record)
    run.save_checkpoint(1, FILES)
    assert written[-1] == "manifest.json"
    assert len(written) == 3


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a file truncated": lambda p: (p / "state.safetensors").write_bytes(FILES["state.safetensors"][:-1]),
    "a file grown": lambda p: (p / "state.safetensors").write_bytes(FILES["state.safetensors"] + b"x"),
    "a bit flipped": lambda p: (p / "lora.safetensors").write_bytes(b"mora" + FILES["lora.safetensors"][4:]),
    "a file empty": lambda p: (p / "lora.safetensors").write_bytes(b""),
    "a file gone": lambda p: (p / "state.safetensors").unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "manifest empty": lambda p: (p / "manifest.json").write_bytes(b""),
    "manifest zeros": lambda p: (p / "manifest.json").write_bytes(b"\0" * 50),
    "manifest cut": lambda p: (p / "manifest.json").write_bytes((p / "manifest.json").read_bytes()[:60]),
    "manifest a list": lambda p: (p / "manifest.json").write_text("[]"),
    "manifest without files": lambda p: (p / "manifest.json").write_text('{"step": 2, "files": {}}'),
    "manifest with odd files": lambda p: (p / "manifest.json").write_text('{"step": 2, "files": [1]}'),
    "manifest not text": lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"),
    "manifest of another step": lambda p: (p / "manifest.json").write_text(
        (p / "manifest.json").read_text().replace('"step": 2', '"step": 3')
    ),
    "the folder empty": lambda p: [file.unlink() for file in p.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_is_skipped_and_told(damage: Callable[[Path], object], run: RunFolder) -> None:
    for step in (1, 2):
        run.save_checkpoint(step, FILES)
    damage(run.path / "checkpoints" / "step_00000002")
    assert steps(run) == [1]
    assert run.latest() == Checkpoint(1, run.path / "checkpoints" / "step_00000001")
    found = {checkpoint.step: problem for checkpoint, problem in run.examine_checkpoints()}
    assert found[1] is None
    assert found[2]


def test_what_is_no_checkpoint_is_not_looked_at(run: RunFolder) -> None:
    run.save_checkpoint(1, FILES)
    for name in ("step_x", ".tmp_1234", "best", "step_-0000001"):
        (run.path / "checkpoints" / name).mkdir()
    assert steps(run) == [1]


def test_checkpoints_come_in_the_order_of_their_steps(run: RunFolder) -> None:
    for step in (10, 9, 123456789, 100):
        run.save_checkpoint(step, FILES)
    assert steps(run) == [9, 10, 100, 123456789]
    assert run.latest() is not None
    assert run.latest().step == 123456789  # type: ignore[union-attr]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def attempt(save: Callable[[], object]) -> str:
    """What the user is told if it fails, or nothing."""
    try:
        save()
    except SaveError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", range(4))
def test_a_failed_save_leaves_everything_as_it_was(
    call: str, after: int, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at each of the moments when something is written."""
    run.save_checkpoint(1, FILES)
    before, calls, original = content(run.path), 0, getattr(os, call)

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        full() if calls > after else original(*arguments)

    monkeypatch.setattr(os, call, failing)
    message = attempt(lambda: run.save_checkpoint(2, FILES))
    monkeypatch.undo()
    if calls > after:
        assert "disk is full" in message
        assert content(run.path) == before
        assert run.save_checkpoint(2, FILES).step == 2
    assert steps(run) == [1, 2]


@pytest.mark.parametrize("after", range(3))
def test_a_failed_second_save_of_a_step_keeps_the_first(
    after: int, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_checkpoint(1, FILES)
    calls, original = 0, os.replace

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        full() if calls == after + 1 else original(*arguments)

    monkeypatch.setattr(os, "replace", failing)
    attempt(lambda: run.save_checkpoint(1, FILES))
    monkeypatch.undo()
    assert steps(run) == [1]


def test_saving_over_a_damaged_checkpoint(run: RunFolder) -> None:
    run.save_checkpoint(1, FILES)
    (run.path / "checkpoints" / "step_00000001" / "lora.safetensors").write_bytes(b"")
    run.save_checkpoint(1, FILES)
    assert steps(run) == [1]
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step_00000001"]


def test_pruning_keeps_the_newest(run: RunFolder) -> None:
    for step in range(1, 6):
        run.save_checkpoint(step, FILES)
    run.prune_checkpoints(2)
    assert steps(run) == [4, 5]
    run.prune_checkpoints(2)
    assert steps(run) == [4, 5]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_never_prefers_a_damaged_checkpoint(keep: int, run: RunFolder) -> None:
    """The run went on from 4, as 8 was damaged, and has just saved 6: that one is not the oldest."""
    for step in (2, 4, 7, 8):
        run.save_checkpoint(step, FILES)
    for step in (7, 8):
        (run.path / "checkpoints" / f"step_0000000{step}" / "state.safetensors").write_bytes(b"x")
    run.save_checkpoint(6, FILES)
    run.prune_checkpoints(keep)
    assert steps(run) == [2, 4, 6][-keep:]


def test_leftovers_of_a_crash_are_removed_and_checkpoints_are_not(run: RunFolder) -> None:
    run.save_checkpoint(1, FILES)
    shutil.copytree(run.path / "checkpoints" / "step_00000001", run.path / "checkpoints" / ".tmp_dead")
    (run.path / ".run.json.1234.tmp").write_text("{")
    run.clear_leftovers()
    assert sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*")) == [
        "checkpoints",
        "checkpoints/step_00000001",
        "checkpoints/step_00000001/lora.safetensors",
        "checkpoints/step_00000001/manifest.json",
        "checkpoints/step_00000001/state.safetensors",
        "job.yaml",
        "run.json",
    ]


def test_samples_of_the_last_step(run: RunFolder) -> None:
    for step, names in ((0, ["00.png"]), (250, ["01.png", "00.png"])):
        run.sample_folder(step).mkdir(parents=True)
        for name in names:
            (run.sample_folder(step) / name).write_bytes(b"")
    assert [path.name for path in run.sample_paths()] == ["00.png", "01.png"]
    assert [path.parent.name for path in run.sample_paths(0)] == ["step_00000000"]
    assert run.sample_paths(7) == []


def test_the_job_as_yaml_is_the_fully_resolved_one(run: RunFolder, job_of: Callable[..., JobConfig]) -> None:
    assert (run.path / "job.yaml").read_text(encoding="utf-8") == dump_job(job_of())
