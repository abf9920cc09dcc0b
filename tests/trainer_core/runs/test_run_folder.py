"""The run folder: what is in it, and what takes the place of what is damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_core import files
from trainer_core.config import JobConfig, dump_job
from trainer_core.errors import ConfigError, RunError, SaveError
from trainer_core.runs.run_folder import RunFolder
from trainer_core.safetensors_file import serialize

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


KNOWN = ("queued", "running", "paused", "stopped", "finished", "failed")
STATUS = {"state": "running", "step": 2, "steps": 3, "error": None, "updated": 1.5}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "\0\0\0",
        "[1]",
        '"running"',
        "[" * 9999,
        "{}",
        *(json.dumps({**STATUS, "state": state}) for state in ("runninG", "7", "")),
        json.dumps({**STATUS, "state": None}),
        json.dumps({**STATUS, "state": []}),
        *(json.dumps({**STATUS, "step": step}) for step in (-1, "2", 2.5, None, True)),
        *(json.dumps({**STATUS, "steps": steps}) for steps in (-1, "3", None)),
        json.dumps({**STATUS, "error": 3}),
        json.dumps({**STATUS, "error": []}),
        *(json.dumps({**STATUS, "updated": updated}) for updated in ("now", None, True)),
        *(json.dumps({key: value for key, value in STATUS.items() if key != left_out}) for left_out in STATUS),
    ],
)
def test_a_damaged_status_is_made_from_what_is_there(text: str | None, run: RunFolder) -> None:
    run.save_checkpoint(1, FILES)
    run.save_checkpoint(2, FILES)
    (run.path / "checkpoints" / "step_00000002" / "lora.safetensors").unlink()
    (run.path / "run.json").unlink() if text is None else (run.path / "run.json").write_text(text)
    status = run.status()
    assert {key: status[key] for key in ("state", "step", "steps", "error")} == {
        "state": "stopped",
        "step": 1,
        "steps": 3,
        "error": None,
    }
    assert isinstance(status["updated"], float)
    assert any("run.json" in note for note in run.repair())


@pytest.mark.parametrize("state", KNOWN)
@pytest.mark.parametrize("error", [None, "the disk is full"])
def test_a_status_is_read_as_written(state: str, error: str | None, run: RunFolder) -> None:
    run.write_status(state, 2, 3, error)
    status = run.status()
    assert (status["state"], status["step"], status["steps"], status["error"]) == (state, 2, 3, error)
    assert run.repair() == []


def test_a_run_of_which_nothing_is_left_has_a_status(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000003").mkdir(parents=True)
    status = RunFolder(tmp_path).status()
    assert (status["state"], status["step"], status["steps"]) == ("stopped", 0, 0)


def test_no_token_reaches_the_folder(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret of mine")
    run.log("401 for a secret of mine at https://me:word@host/x")
    run.write_status("failed", 0, 3, "401 for a secret of mine")
    for path in run.path.iterdir():
        assert b"a secret of mine" not in path.read_bytes()
        assert b"word@" not in path.read_bytes()
    assert str(run.status()["error"]).startswith("401 for ")


# --- the job ---------------------------------------------------------------------------------------------------------


def state_of(job: JobConfig) -> dict[str, bytes]:
    """A checkpoint's files whose state knows the job."""
    return {
        "lora.safetensors": b"lora",
        "state.safetensors": serialize(
            {"x": torch.ones(1)}, {"step": "1", "config": json.dumps(job.model_dump(mode="json"))}
        ),
    }


@pytest.mark.parametrize("text", [None, "", "\0\0\0", "[]", "name: tiny\n", "name: [", "\xff", "nam: x"])
def test_a_damaged_job_is_taken_from_the_newest_checkpoint_that_knows_it(
    text: str | None, run: RunFolder, job_of: Callable[..., JobConfig]
) -> None:
    job = job_of()
    run.save_checkpoint(1, state_of(job_of("another")))
    run.save_checkpoint(2, state_of(job))
    run.save_checkpoint(3, FILES)  # of an older version, which did not write the job down
    run.save_checkpoint(4, state_of(job_of("another")))
    (run.path / "checkpoints" / "step_00000004" / "lora.safetensors").write_bytes(b"damaged")
    path = run.path / "job.yaml"
    path.unlink() if text is None else path.write_bytes(text.encode("latin-1"))
    again = RunFolder.open(run.path)
    assert again.job() == job
    assert path.read_text(encoding="utf-8") == dump_job(job)
    if text is not None:
        assert (run.path / "job.damaged.yaml").read_bytes() == text.encode("latin-1")
    (note,) = again.repair()
    assert "job.yaml is damaged" in note
    assert "step 2" in note
    assert "job.yaml is damaged" in (run.path / "log.txt").read_text()
    assert again.repair() == []
    assert RunFolder.open(run.path).job() == job


def test_a_damaged_job_that_nothing_knows(run: RunFolder) -> None:
    run.save_checkpoint(1, FILES)
    (run.path / "job.yaml").write_text("nonsense: 1")
    with pytest.raises(ConfigError, match=r"job\.yaml.*nonsense"):
        run.job()
    assert (run.path / "job.yaml").read_text() == "nonsense: 1"


def test_a_damaged_job_on_a_full_disk_is_known_all_the_same(
    run: RunFolder, job_of: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_checkpoint(1, state_of(job_of()))
    (run.path / "job.yaml").write_text("")
    monkeypatch.setattr(files.os, "fsync", full)
    assert run.job() == job_of()
    assert (run.path / "job.yaml").read_text() == ""


def test_asking_for_the_state_changes_nothing(run: RunFolder, job_of: Callable[..., JobConfig]) -> None:
    run.save_checkpoint(1, state_of(job_of()))
    for name in ("run.json", "job.yaml"):
        (run.path / name).write_text("{")
    before = content(run.path)
    assert run.status()["steps"] == 3
    assert content(run.path) == before


# --- after a crash ---------------------------------------------------------------------------------------------------


def test_leftovers_of_a_crash_are_removed_and_nothing_else(run: RunFolder) -> None:
    run.save_checkpoint(1, FILES)
    run.sample_folder(1).mkdir(parents=True)
    (run.sample_folder(1) / "00.png").write_bytes(b"png")
    before = content(run.path)
    shutil.copytree(run.path / "checkpoints" / "step_00000001", run.path / "checkpoints" / ".tmp_dead")
    for name in (".run.json.1234.tmp", ".pinned.json.12345678.tmp", "samples/step_00000001/.00.png.12345678.tmp"):
        (run.path / name).write_text("{")
    assert run.repair() == []
    assert content(run.path) == before
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step_00000001"]


def test_a_checkpoint_that_only_made_way_is_put_back_and_told(run: RunFolder) -> None:
    run.save_checkpoint(3, FILES)
    (run.path / "checkpoints" / "step_00000003").rename(run.path / "checkpoints" / ".old_12345678")
    (note,) = run.repair()
    assert "step 3 was put back" in note
    assert steps(run) == [3]


# --- checkpoints -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "junk",
    [
        b"null",
        b"3",
        b"[1]",
        b'"step"',
        b"{}",
        b'{"loss": 1}',
        b'{"step": "2"}',
        b'{"step": true}',
        b'{"step": 2, "loss": "x"}',
        b'{"step": 2, "validation_loss": []}',
        b'{"step": 2, "lo',
        b"\xff\xfe\x00",
        b"\x85\x0b\x0c\x1c",
        b"[" * 9999,
        b'{"step": 2}{"step": 3}',
    ],
)
@pytest.mark.parametrize("place", ["first", "in between", "last"])
def test_lines_that_are_none_are_left_out(place: str, junk: bytes, run: RunFolder) -> None:
    lines = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "validation_loss": 0.25}']
    lines.insert({"first": 0, "in between": 1, "last": 2}[place], junk)
    (run.path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    expected = [{"step": 1, "loss": 0.5}, {"step": 2, "validation_loss": 0.25}]
    assert run.metrics() == expected
    run.append_metrics({"step": 3, "loss": 0.125})
    run.truncate_metrics(3)
    assert RunFolder.open(run.path).metrics() == [*expected, {"step": 3, "loss": 0.125}]
    assert "metrics.jsonl: 1 damaged" in (run.path / "log.txt").read_text()
    assert run.losses() == [0.5, 0.125]


def test_metrics_after_a_power_cut(run: RunFolder) -> None:
    """File systems leave blocks of zeros, or of anything, at the end of what was being appended."""
    run.append_metrics({"step": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 100 + b"\n\xff\xfe\n")
    assert run.metrics() == [{"step": 1}]
    run.truncate_metrics(1)
    assert (run.path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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
