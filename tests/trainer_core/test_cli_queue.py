"""`queue` and waiting for one's turn, with processes that wait, are killed, and have the device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainer_core.cli import main
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.run_lock import RunLock

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one message of a command that fails."""
    assert main(list(argv)) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("lora-foundry: ")
    assert "Traceback" not in captured.err
    return captured.err


def state(run: str) -> dict[str, Any]:
    return json.loads((Path("runs") / run / "run.json").read_text(encoding="utf-8"))


def waiting(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The names of the runs in the queue, by its own account."""
    capsys.readouterr()
    assert main(["queue", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["place"] for one in found] == list(range(1, len(found) + 1))
    return [one["name"] for one in found]


@contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours, whose output can be read line by line."""
    command = [sys.executable, "-m", "trainer_core", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        try:
            yield started
        except BaseException:
            started.kill()
            raise


def read_until(reader: subprocess.Popen[str], start: str) -> str:
    """Reads lines up to one that begins so, and gives that line."""
    assert reader.stdout is not None
    seen = ""
    for line in reader.stdout:
        seen += line
        if line.startswith(start):
            return line
    pytest.fail(f"{start!r} never came, but:\n{seen}")


def test_add_move_remove(make_job: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["queue"]) == 0
    assert capsys.readouterr().out == "no run waits\n"
    for name in ("a", "b", "c"):
        assert main(["queue", "add", str(make_job(name))]) == 0
    assert f"run {Path('runs/c').resolve()} has place 3 in the queue of cpu" in capsys.readouterr().out
    assert waiting(capsys) == ["a", "b", "c"]
    assert {state(name)["state"] for name in "abc"} == {"queued"}
    assert main(["queue", "move", "c", "1"]) == 0
    assert capsys.readouterr().out == "c has place 1 in the queue of cpu\n"
    assert main(["queue", "move", str(Path("runs/a").resolve()), "9", "--runs", "elsewhere"]) == 0
    assert waiting(capsys) == ["c", "b", "a"]
    assert main(["queue", "remove", "b"]) == 0
    assert waiting(capsys) == ["c", "a"]
    assert Path("runs/b/job.yaml").is_file()
    assert "no run 'b' waits; these do: c, a" in complaint(capsys, "queue", "remove", "b")
    assert main(["queue"]) == 0
    assert "\n1      cpu     c    queued  " in capsys.readouterr().out

    assert main(["queue", "add", str(make_job("c")), "--runs", "others"]) == 0
    assert main(["queue", "move", "c", "2"]) == 0, "the one under ./runs is meant"
    assert waiting(capsys) == ["a", "c", "c"]
    assert "several runs 'c' wait" in complaint(capsys, "queue", "remove", "c", "--runs", "elsewhere")
    shutil.rmtree("others")
    assert main(["queue"]) == 0
    assert "gone" in capsys.readouterr().out.splitlines()[-1]


def test_a_job_that_cannot_be_queued_leaves_nothing(
    make_job: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in complaint(capsys, "queue", "add", str(make_job()))
    assert list(Path("runs").iterdir()) == []


def test_removing_a_run_whose_process_waits_asks_it_to_stop(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "add", str(make_job())]) == 0
    with RunLock(Path("runs/tiny")):
        ticket = DeviceQueue("cpu").join(Path("runs/tiny"))
        assert main(["queue", "remove", "tiny"]) == 0
        assert Path("runs/tiny/requests/stop").exists()
        assert waiting(capsys) == ["tiny"], "until it stops"
        ticket.leave()


def test_start_trains_all_that_wait_and_names_what_failed(
    make_job: Make, make_dataset: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queue", "start"]) == 0
    assert capsys.readouterr().out == "no run waits without a process\n"
    broken = make_dataset(name="broken")
    jobs = {name: {"train": {"steps": 1}} for name in ("first", "broken", "held", "gone", "done", "last")}
    jobs["broken"]["datasets"] = [{"folder": str(broken), "resolutions": [64]}]  # type: ignore[assignment]
    for name, settings in jobs.items():
        assert main(["queue", "add", str(make_job(name, **settings))]) == 0
    assert main(["queue", "move", "last", "1"]) == 0
    shutil.rmtree(broken)
    shutil.rmtree("runs/gone")
    RunFolder.open(Path("runs/done")).write_status("finished", 1, 1)
    capsys.readouterr()
    with RunLock(Path("runs/held")):
        assert main(["queue", "start"]) == 1
    captured = capsys.readouterr()
    runs = [Path(line[4:]).name for line in captured.out.splitlines() if line.startswith("run ")]
    assert runs == ["last", "first", "broken"]
    told, last = captured.err.splitlines()[-2:]
    assert told.startswith(f"failed: {Path('runs/broken').resolve()}: ")
    assert str(broken) in told
    assert last == "lora-foundry: 1 of 3 runs failed, see above: broken"
    assert {name: state(name)["state"] for name in ("last", "first", "broken", "held")} == {
        "last": "finished",
        "first": "finished",
        "broken": "failed",
        "held": "queued",
    }
    assert waiting(capsys) == ["held"]


def test_a_run_waits_for_its_turn_and_says_so(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    job = str(make_job(train={"steps": 1}))
    other = DeviceQueue("cpu").join(Path("runs/other"))
    assert other.try_enter()
    assert main(["train", job, "--no-queue"]) == 0
    assert state("tiny")["state"] == "finished"
    with process("train", job) as waiter:
        line = read_until(waiter, "waiting")
        assert "(other)" in line
        assert state("tiny_2")["state"] == "queued"
        assert waiting(capsys) == ["other", "tiny_2"]
        other.leave()
        read_until(waiter, "LoRA: ")
    assert waiter.returncode == 0
    assert waiting(capsys) == []


def test_a_killed_run_is_told_and_gone_on_with(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with process("train", str(make_job(train={"steps": 300}, save={"every": 2}))) as victim:
        read_until(victim, "saved")
        victim.kill()
    assert state("tiny")["state"] == "running", "it could not say more"
    assert main(["runs"]) == 0
    assert "stopped (crashed)" in capsys.readouterr().out
    assert waiting(capsys) == ["tiny"], "it keeps its place"
    saved = max(int(path.name[5:]) for path in Path("runs/tiny/checkpoints").glob("step_*"))
    assert saved >= 2
    job = Path("runs/tiny/job.yaml")
    job.write_text(job.read_text(encoding="utf-8").replace("steps: 300", f"steps: {saved + 1}"), encoding="utf-8")
    assert main(["queue", "start"]) == 0
    assert state("tiny") | {"state": "finished", "step": saved + 1} == state("tiny")
    lines = Path("runs/tiny/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, saved + 2))
    assert waiting(capsys) == []
