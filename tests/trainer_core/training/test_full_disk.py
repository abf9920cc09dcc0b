"""A disk that fills up, turns read-only or refuses: one clear message, and nothing of what was saved before is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_core.config import JobConfig
from trainer_core.data.cache import TensorCache
from trainer_core.errors import FoundryError, SaveError
from trainer_core.job import TrainingJob
from trainer_core.runs import checkpoints
from trainer_core.runs.events import Event, StateChanged, StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.training import previews

Jobs = Callable[..., JobConfig]

FILES = {"lora.safetensors": b"lora" * 10, "state.safetensors": b"state" * 100_000}
_STEPS = 4


def mounted(folder: Path, *options: str) -> Path:
    """A file system of 16 MB of its own; the test is skipped where that is not allowed."""
    folder.mkdir()
    command = shutil.which("mount")
    done = command and subprocess.run(
        [command, "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True
    )
    if not done or done.returncode:
        pytest.skip("no file system may be mounted here (needs Linux and root)")
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = mounted(tmp_path / "disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Leaves so many bytes on a disk."""
    with (disk / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(disk).free) > leave:
            file.write(b"x" * min(1 << 20, free - leave))


def free(disk: Path) -> None:
    (disk / "ballast").unlink(missing_ok=True)


def pad(path: Path) -> None:
    """Empty lines up to 8 bytes before a block's end: of the next line only the beginning finds room."""
    with path.open("ab") as file:
        file.write(b"\n" * ((-file.tell() - 8) % 4096))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def job(job_of: Jobs) -> JobConfig:
    return job_of(
        dataset={"flip_x": True, "caption_dropout": 0.3},
        train={"steps": _STEPS, "ema_decay": 0.9},
        save={"every": 2, "keep": 2},
        sample={"every": 2, "prompts": ["a [trigger]"], "steps": 1},
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run that all others must equal, once it was made."""
    return {"root": tmp_path_factory.mktemp("undisturbed")}


@pytest.fixture
def expected(job: JobConfig, undisturbed: dict[str, Path]) -> RunFolder:
    if "run" not in undisturbed:
        training = TrainingJob.new(undisturbed["root"], job)
        assert training.run_here(lambda _: None) == "finished"
        undisturbed["run"] = training.run.path
    return RunFolder.open(undisturbed["run"])


Break = Callable[[], None]
"""What happens to the disk at the moment in question."""


def before_call(owner: Any, name: str, when: Callable[..., bool]) -> Callable[[pytest.MonkeyPatch, Break], None]:
    """Breaks the disk before the first call that `when` says."""

    def arrange(patch: pytest.MonkeyPatch, broken: Break) -> None:
        original, done = getattr(owner, name), False

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if not done and when(*arguments):
                done = True
                broken()
            return original(*arguments, **options)

        patch.setattr(owner, name, call)

    return arrange


MOMENTS: dict[str, tuple[Callable[[pytest.MonkeyPatch, Break], None], str, int]] = {
    # what is being written, the file that the message names, the last checkpoint
    "a cache entry": (before_call(TensorCache, "put", lambda *_: True), ".cache", 0),
    "the first checkpoint": (
        before_call(checkpoints, "write_durably", lambda path, _: path.name == "manifest.json"),
        "step_00000002",
        0,
    ),
    "a later checkpoint": (
        before_call(
            checkpoints,
            "write_durably",
            lambda path, _: path.name == "state.safetensors" and (path.parents[1] / "step_00000002").exists(),
        ),
        "step_00000004",
        2,
    ),
    "a preview": (before_call(previews, "write_atomically", lambda *_: True), "00.png", 2),
    "metrics": (before_call(RunFolder, "append_metrics", lambda _, values: values["step"] == 3), "metrics.jsonl", 2),
    "the log": (before_call(RunFolder, "log", lambda run, _: run.latest() is not None), "log.txt", 2),
    "the state": (
        before_call(RunFolder, "write_status", lambda run, state, step, *_: state == "running" and step == 4),
        "run.json",
        4,
    ),
}


def start(run: RunFolder) -> tuple[FoundryError | None, list[Event]]:
    """Goes on with a run as a new process does."""
    events: list[Event] = []
    training = TrainingJob(RunFolder.open(run.path))
    try:
        training.run_here(events.append)
    except FoundryError as error:
        return error, events
    return None, events


def check_told(error: FoundryError | None, events: list[Event], words: str, name: str) -> None:
    assert isinstance(error, SaveError)
    assert words in str(error)
    assert name in str(error)
    assert "\n" not in str(error)
    last = events[-1]
    assert isinstance(last, StateChanged)
    assert last.state == "failed"
    assert words in (last.error or "")


def check_intact(run: RunFolder, newest: int) -> None:
    assert max((found.step for found in run.checkpoints()), default=0) == newest
    assert all(problem is None for _, problem in run.examine_checkpoints())
    assert not list(run.path.rglob(".tmp_*"))
    assert not [path for path in run.path.parent.rglob("*.tmp") if "owner.json" not in path.name]
    steps = [line["step"] for line in run.metrics() if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def check_same(run: RunFolder, expected: RunFolder) -> None:
    ours, theirs = run.latest(), expected.latest()
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step == _STEPS
    assert ours.lora.read_bytes() == theirs.lora.read_bytes()
    assert ours.state.read_bytes() == theirs.state.read_bytes()
    for path in expected.path.glob("samples/*/*.png"):
        assert (run.path / path.relative_to(expected.path)).read_bytes() == path.read_bytes()
    timed = {"seconds_per_step", "peak_memory"}
    lines = [[{k: v for k, v in line.items() if k not in timed} for line in one.metrics()] for one in (run, expected)]
    assert lines[0] == lines[1]
    assert run.status()["state"] == "finished"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_is_really_full(
    moment: str, job: JobConfig, expected: RunFolder, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange, name, newest = MOMENTS[moment]
    run = RunFolder.create(disk / "runs", job)

    def broken() -> None:
        if name in ("metrics.jsonl", "log.txt"):
            pad(run.path / name)
        fill(disk)

    with monkeypatch.context() as patch:
        arrange(patch, broken)
        error, events = start(run)
    check_told(error, events, "the disk is full", name)
    check_intact(run, newest)
    free(disk)
    error, _ = start(run)
    assert error is None
    check_same(run, expected)


def test_a_disk_that_stays_full(job: JobConfig, expected: RunFolder, disk: Path) -> None:
    """Whoever resumes without freeing space is told again, and loses nothing."""
    run = RunFolder.create(disk / "runs", job)
    training = TrainingJob(run)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            training.stop()

    assert training.run_here(listen) == "stopped"
    fill(disk)
    before = content(run.path / "checkpoints")
    for _ in range(2):
        error, _ = start(run)
        assert isinstance(error, SaveError)
        assert "the disk is full" in str(error)
        assert content(run.path / "checkpoints") == before
    free(disk)
    assert start(run)[0] is None
    check_same(run, expected)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_refuses_in_the_middle(
    number: int, job: JobConfig, expected: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that the kernel made read-only after an error, permissions taken away, a failing drive."""
    run = RunFolder.create(tmp_path / "runs", job)
    with monkeypatch.context() as patch:
        arrange, name, newest = MOMENTS["a later checkpoint"]
        arrange(patch, lambda: refuse(patch, run.path, number))
        error, events = start(run)
    check_told(error, events, WORDS[number], name)
    check_intact(run, newest)
    assert start(run)[0] is None
    check_same(run, expected)


# --- each kind of writing --------------------------------------------------------------------------------------------

WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full",
    errno.EROFS: "read-only",
    errno.EACCES: "permissions",
    errno.EPERM: "permissions",
    errno.EIO: "cannot be written",
}


def refuse(patch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """From now on nothing can be made, written or renamed below a folder (permissions would not stop root)."""

    def guarded(owner: Any, name: str, writes: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            inside = folder in [*Path(str(arguments[0])).parents, Path(str(arguments[0]))]
            if inside and writes(*arguments[1:], *options.values()):
                raise OSError(number, os.strerror(number), str(arguments[0]))
            return original(*arguments, **options)

        patch.setattr(owner, name, call)

    guarded(Path, "open", lambda mode="r", *_: mode not in ("r", "rb"))
    guarded(Path, "mkdir")
    guarded(os, "replace")
    guarded(os, "link")
    guarded(os, "truncate")


def attempt(write: Callable[[], object]) -> str:
    """What the user is told if it fails, or nothing."""
    try:
        write()
    except SaveError as error:
        return str(error)
    return ""


WRITES: dict[str, Callable[[RunFolder, JobConfig], object]] = {
    "a checkpoint": lambda run, _: run.save_checkpoint(2, FILES),
    "the same checkpoint again": lambda run, _: run.save_checkpoint(1, FILES),
    "the state": lambda run, _: run.write_status("running", 2, 3),
    "metrics": lambda run, _: run.append_metrics({"step": 2, "loss": 0.5, "text": "x" * 8192}),
    "metrics cut back": lambda run, _: run.truncate_metrics(1),
    "the log": lambda run, _: run.log("x" * 8192),
    "job.yaml": lambda run, job: run.write_job(job.but(trigger="other")),
    "a pin": lambda run, _: run.pin(1),
    "another run": lambda run, job: RunFolder.create(run.path.parent, job),
}


@pytest.fixture
def settled(request: pytest.FixtureRequest, tmp_path: Path, job_of: Jobs) -> RunFolder:
    """A run with a checkpoint, metrics and a log; on a small disk if the test has one."""
    root = request.getfixturevalue("disk") if "disk" in request.fixturenames else tmp_path
    run = RunFolder.create(root / "runs", job_of())
    run.save_checkpoint(1, FILES)
    run.append_metrics({"step": 1, "loss": 0.5})
    run.log("begun")
    return run


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("room", [0, 8192], ids=["no room", "some room"])
def test_what_finds_no_room_changes_nothing(what: str, room: int, settled: RunFolder, disk: Path, job_of: Jobs) -> None:
    pad(settled.path / "metrics.jsonl")
    pad(settled.path / "log.txt")
    before = content(settled.path.parent)
    fill(disk, room)
    told = attempt(lambda: WRITES[what](settled, job_of()))
    assert "the disk is full" in told or room
    assert not told or content(settled.path.parent) == before
    assert settled.latest() is not None
    free(disk)
    again = RunFolder.open(settled.path)
    assert again.repair() == []
    WRITES[what](again, job_of())
    assert again.checkpoints()[0].step == 1


@pytest.mark.parametrize("number", WORDS, ids=errno.errorcode.get)
@pytest.mark.parametrize("what", WRITES)
def test_what_is_refused_changes_nothing(
    what: str, number: int, settled: RunFolder, job_of: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(settled.path.parent)
    with monkeypatch.context() as patch:
        refuse(patch, settled.path.parent, number)
        with pytest.raises(SaveError, match=WORDS[number]):
            WRITES[what](settled, job_of())
    assert content(settled.path.parent) == before
    assert settled.repair() == []


def test_a_read_only_disk_is_read_and_not_written(settled: RunFolder, disk: Path, job_of: Jobs) -> None:
    before = content(settled.path)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    run = RunFolder.open(settled.path)
    assert run.status()["state"] == "queued"
    assert run.job() == job_of()
    assert [found.step for found in run.checkpoints()] == [1]
    for what, write in WRITES.items():
        if what != "a pin":
            with pytest.raises(SaveError, match="read-only"):
                write(run, job_of())
    run.prune_checkpoints(1)
    error, _ = start(run)
    assert isinstance(error, FoundryError)
    assert "read-only" in str(error)
    assert content(settled.path) == before


def test_the_cache_on_a_full_disk(disk: Path) -> None:
    cache = TensorCache(disk / "cache")
    cache.put("a" * 64, {"x": torch.ones(3)})
    fill(disk)
    with pytest.raises(SaveError, match="the disk is full"):
        cache.put("a" * 63 + "b", {"x": torch.ones(100_000)})
    assert [path.name for path in (disk / "cache").rglob("*") if path.is_file()] == ["a" * 64 + ".safetensors"]
    entry = cache.get("a" * 64)
    assert entry is not None
    assert entry["x"].tolist() == [1, 1, 1]
