"""`runs`, `tell`, `pin`, and what `resume` may change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainer_core.assignments import changed_job
from trainer_core.cli import main
from trainer_core.config import load_job
from trainer_core.errors import ConfigError
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.run_lock import RunLock

from .complaints import complaint

Make = Callable[..., Path]
DIE_HOLDING = """
import os, sys
from pathlib import Path
from trainer_core.runs.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
os._exit(9)
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def run_of(make_job: Make) -> Callable[..., RunFolder]:
    """Makes a run of a name in a state."""

    def make(name: str, state: str = "queued", step: int = 0) -> RunFolder:
        run = RunFolder.create(Path("runs"), load_job(make_job(name)))
        run.write_status(state, step, 4)
        return run

    return make


def test_runs_tells_states_and_places(
    run_of: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 6000.0])
    with monkeypatch.context() as patch:
        patch.setattr("trainer_core.runs.run_folder.time.time", lambda: next(moments))
        run_of("done", "finished", 4)
        dead = run_of("dead", "running", 2)
        waits = run_of("waits")
    assert subprocess.run([sys.executable, "-c", DIE_HOLDING, str(dead.path)]).returncode == 9
    DeviceQueue("cpu").add(Path("elsewhere"))
    DeviceQueue("cpu").add(waits.path)
    capsys.readouterr()
    assert main(["runs"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()[2:]]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [[*row[:3], *row[4:]] for row in rows] == [
        ["waits", "queued", "0/4", "2"],
        ["dead", "stopped (crashed)", "2/4"],
        ["done", "finished", "4/4"],
    ]
    with RunLock(dead.path):
        assert main(["runs", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert (found["dead"]["state"], found["dead"]["crashed"]) == ("running", False)
    assert found["dead"]["owner"]["pid"] == os.getpid()
    assert (found["waits"]["place"], found["waits"]["resumable"], found["waits"]["owner"]) == (2, True, None)
    assert (found["done"]["place"], found["done"]["resumable"], found["done"]["updated"]) == (None, False, 2000.0)
    assert found["done"]["path"] == str(Path("runs/done").resolve())


def test_no_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert "runs holds no runs" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_tell_reaches_whoever_works_on_the_run(
    run_of: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("one", "stopped", 2)
    message = complaint(capsys, "tell", "one", "stop")
    assert "nobody works on" in message
    assert "it is stopped. To go on with it: lora-foundry resume one" in message
    assert not (run.path / "requests").exists()
    run.write_status("finished", 4, 4)
    assert "resume" not in complaint(capsys, "tell", "one", "stop")
    with RunLock(run.path):
        for request in ("stop", "pause", "continue", "save", "sample"):
            assert main(["tell", "one", request]) == 0
            assert f"asked process {os.getpid()} on " in capsys.readouterr().out
    assert sorted(path.name for path in (run.path / "requests").iterdir()) == [
        "continue",
        "pause",
        "sample",
        "save",
        "stop",
    ]


def test_resume_of_a_run_that_is_held_says_by_whom(
    run_of: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("my run", "running", 2)
    with RunLock(run.path):
        message = complaint(capsys, "resume", "my run")
        assert f"process {os.getpid()} on " in message
        assert 'it is running. To stop it: lora-foundry tell "my run" stop' in message
        run.write_status("paused", 2, 4)
        message = complaint(capsys, "resume", str(run.path), "--runs", "elsewhere")
        assert f'it is paused. It goes on: lora-foundry tell "{run.path.resolve()}" continue' in message


def test_a_folder_with_a_job_is_no_run(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever keeps a job.yaml beside the pictures must find it as it was, comments and all."""
    for folder in (Path("mine"), Path()):
        folder.mkdir(exist_ok=True)
        (folder / "job.yaml").write_bytes(b"# my notes\n" + make_job().read_bytes())
        (folder / "checkpoints" / "step_00000010").mkdir(parents=True)  # of another program
    before = content()
    for name in ("mine", "./mine", ".", "", " ", str(Path("mine").resolve())):
        for command in (
            ["resume", name],
            ["tell", name, "stop"],
            ["pin", name, "1"],
            ["sample", name, "--prompt", "x"],
        ):
            assert "empty" in (told := complaint(capsys, *command)) or "no run" in told
        assert "empty" in (told := complaint(capsys, "queue", "remove", name)) or "no run" in told
    assert content() == before


def test_a_bare_name_is_one_under_the_runs_folder(
    run_of: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path with a separator is a path; a bare name may still be a run beside the runs folder."""
    inside, beside, only_here = run_of("one"), run_of("two"), run_of("three")
    beside.path.rename("one")
    only_here.path.rename("three")
    (Path("one") / "checkpoints").mkdir(exist_ok=True)
    for run in (inside, RunFolder(Path("one").resolve()), RunFolder(Path("three").resolve())):
        run.save_checkpoint(3, {"lora.safetensors": b"x", "state.safetensors": b"y"})
        DeviceQueue("cpu").add(run.path)

    def pinned() -> list[bool]:
        return [RunFolder(path).pinned() == {3} for path in (Path("runs/one"), Path("one"), Path("three"))]

    assert main(["pin", "one", "3"]) == 0
    assert pinned() == [True, False, False]
    assert main(["pin", "./one", "3"]) == 0
    assert pinned() == [True, True, False]
    assert main(["pin", "three", "3"]) == 0
    assert pinned() == [True, True, True]
    assert main(["queue", "remove", "one"]) == 0
    assert [one.run for one in DeviceQueue("cpu").tickets()] == [Path("one").resolve(), Path("three").resolve()]
    assert main(["queue", "remove", "one"]) == 0
    assert [one.run for one in DeviceQueue("cpu").tickets()] == [Path("three").resolve()]
    monkeypatch.chdir("three")
    assert main(["pin", ".", "3", "--remove"]) == 0
    assert not RunFolder(Path.cwd()).pinned()


def test_a_run_without_its_run_json_is_known_by_its_checkpoint(run_of: Callable[..., RunFolder]) -> None:
    run = run_of("one", "stopped", 3)
    (run.path / "run.json").unlink()
    assert not RunFolder.is_one(run.path)
    checkpoint = run.save_checkpoint(3, {"lora.safetensors": b"x", "state.safetensors": b"y"})
    (run.path / "job.yaml").unlink()
    assert RunFolder.is_one(run.path)
    checkpoint.lora.write_bytes(b"damaged")
    assert RunFolder.is_one(run.path)


def content() -> dict[str, bytes]:
    """All files here."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_resume_with_changes(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(train={"steps": 2}, save={"every": 1})
    assert main(["train", str(job)]) == 0
    stored = Path("runs/tiny/job.yaml")
    before = stored.read_text(encoding="utf-8")
    assert main(["resume", "tiny"]) == 0, "finished, nothing to do"

    # refused: as it was
    def refused(*argv: str) -> str:
        message = complaint(capsys, "resume", "tiny", *argv)
        assert stored.read_text(encoding="utf-8") == before
        assert json.loads(Path("runs/tiny/run.json").read_text(encoding="utf-8"))["state"] == "finished"
        return message

    assert "adapter.rank: may not change" in refused("--set", "adapter.rank=8")
    assert "datasets[0].trigger: may not change" in refused("--set", "datasets[0].trigger=blub")
    assert "did you mean `steps`?" in refused("--set", "train.steps=3", "--set", "sample.stepz=5")
    assert "train.steps" in refused("--set", "train.steps=many")
    assert "train.steps: is 1, but the run has made 2 updates" in refused("--set", "train.steps=1")
    other = yaml.safe_load(job.read_text(encoding="utf-8"))
    other["train"].update(steps=3, learning_rate=2e-3)
    job.write_text(yaml.safe_dump(other), encoding="utf-8")
    assert "--accept train.learning_rate" in refused("--job", str(job))

    # accepted
    assert main(["resume", "tiny", "--job", str(job), "--accept", "train.learning_rate"]) == 0
    assert (load_job(stored).train.steps, load_job(stored).train.learning_rate) == (3, 2e-3)
    assert main(["resume", "tiny", "--set", "train.steps=4", "--set", "train.learning_rate=1e-3"]) == 0
    assert (load_job(stored).train.steps, load_job(stored).train.learning_rate) == (4, 1e-3)
    lines = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["lr"]) for line in lines] == [(1, 1e-3), (2, 1e-3), (3, 2e-3), (4, 1e-3)]

    # pins
    capsys.readouterr()
    assert main(["pin", "tiny", "3"]) == 0
    assert capsys.readouterr().out == "pinned steps of tiny: 3\n"
    assert main(["pin", "tiny", "4"]) == 0
    assert main(["pin", "tiny", "3", "--remove"]) == 0
    assert RunFolder.open(Path("runs/tiny")).pinned() == {4}
    assert "no intact checkpoint of step 7" in complaint(capsys, "pin", "tiny", "7")


def test_settings_by_their_place(make_job: Make) -> None:
    job = load_job(make_job(sample={"prompts": ["a"]}))
    found = changed_job(
        job, ["train.learning_rate=1e-5", "datasets[0].weight = 2", "sample.prompts=[x, '[trigger] y=z']"]
    )
    assert found.train.learning_rate == 1e-5
    assert found.datasets[0].weight == 2
    assert found.sample.prompts == ("x", "[trigger] y=z")
    assert changed_job(job, []) is job


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.steps", "give a field and its value"),
        ("datasets[9].weight=1", r"datasets\[9\].weight: a job has no such setting"),
        ("datasets.weight=1", "datasets.weight: a job has no such setting"),
        ("train.steps.more=1", "a job has no such setting"),
        ("=1", "unknown setting"),
        ("nothing=1", "nothing: unknown setting"),
        ("train=1", "train: must be a section"),
        ("sample.prompts=[", "--set sample.prompts=.: the value is not valid YAML"),
        ("sample.prompts=&a [*a]", "the value line 1"),
        ("[0]=1", "a job has no such setting"),
    ],
)
def test_wrong_assignments_name_the_field(assignment: str, message: str, make_job: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        changed_job(load_job(make_job()), [assignment])


@pytest.mark.parametrize(
    "argv",
    [
        ["tell", "a"],
        ["tell", "a", "dance"],
        ["pin", "a"],
        ["pin", "a", "-1"],
        ["queue", "move", "a"],
        ["queue", "move", "a", "0"],
        ["queue", "bogus"],
        ["resume", "a", "--set"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_a_run_is_steered_from_another_process(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Its second process is refused, it is paused, the device is free meanwhile, it goes on, and it is stopped."""
    command = [sys.executable, "-m", "trainer_core", "train", str(make_job(train={"steps": 3000}))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)

        def wait_for(start: str) -> str:
            return next(line for line in lines if line.startswith(start)).strip()

        try:
            wait_for("step 1/")
            assert f"process {process.pid} on " in complaint(capsys, "resume", "tiny")
            assert main(["tell", "tiny", "pause"]) == 0
            paused = wait_for("paused at step ")
            assert paused.endswith("To go on: lora-foundry tell tiny continue")
            assert "It goes on: lora-foundry tell tiny continue" in complaint(capsys, "resume", "tiny")
            other = DeviceQueue("cpu").join(Path("runs/other"))
            while not other.try_enter():  # it says that it is paused just before it gives the device up
                time.sleep(0.05)
            other.leave()
            assert main(["tell", "tiny", "continue"]) == 0
            step = int(paused.split()[3].rstrip("."))
            while logged_steps()[-1] <= step:
                assert process.poll() is None
                time.sleep(0.05)
            assert main(["tell", "tiny", "stop"]) == 0
            last = wait_for("stopped")
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 130
    status = json.loads(Path("runs/tiny/run.json").read_text(encoding="utf-8"))
    assert last == f"stopped, saved at step {status['step']}. To go on: lora-foundry resume tiny"
    assert logged_steps() == list(range(1, status["step"] + 1))


def logged_steps() -> list[int]:
    """The steps of the whole lines that the run has logged."""
    lines = Path("runs/tiny/metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def test_rename_delete_restore(run_of: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run_of("one", "stopped", 2)
    assert main(["rename", "one", "two"]) == 0
    assert "one is called two now" in capsys.readouterr().out
    assert main(["delete", "two"]) == 0
    assert "lora-foundry restore two" in capsys.readouterr().out
    assert [path.name for path in Path("runs").iterdir()] == [".trash"]
    assert main(["restore", "two"]) == 0
    assert "back as" in capsys.readouterr().out
    assert load_job(Path("runs") / "two" / "job.yaml").name == "two"
    with RunLock(Path("runs") / "two"):
        assert "process" in complaint(capsys, "delete", "two")
