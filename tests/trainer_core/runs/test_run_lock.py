"""Who works on a run: real processes that hold it, die, and come back."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer_core.errors import FoundryError, RunError, RunHeld, SaveError
from trainer_core.runs import run_lock
from trainer_core.runs.locks import NoLocks, try_lock
from trainer_core.runs.run_lock import Owner, RunLock, owner_of, was_abandoned

HERE = platform.node()
HOLD = """
import sys
from pathlib import Path
from trainer_core.runs.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a run until it is told to end."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def tell(folder: Path, **changes: Any) -> None:
    """Writes an owner.json: by default that of this process, alive."""
    facts = {"pid": os.getpid(), "host": HERE, "since": time.time(), "heartbeat": time.time(), **changes}
    (folder / "owner.json").write_text(json.dumps(facts), encoding="utf-8")


def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until something is so."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it never came")


def test_the_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(RunHeld, match=f"process {process.pid} on {HERE}, since .*last sign of life") as caught:
            RunLock(tmp_path).acquire(patience=0.1)
        assert str(tmp_path) in str(caught.value)
        assert isinstance(caught.value, RunError)
        owner = owner_of(tmp_path)
        assert owner is not None
        assert (owner.pid, owner.host) == (process.pid, HERE)
        process.communicate("\n")
    assert owner_of(tmp_path) is None
    assert not was_abandoned(tmp_path)
    with RunLock(tmp_path):
        pass


def test_two_in_one_process_exclude_one_another(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(RunHeld, match=f"process {os.getpid()}"):
            RunLock(tmp_path).acquire(patience=0.0)
        owner = owner_of(tmp_path)
        assert owner is not None
        assert owner.pid == os.getpid()
    RunLock(tmp_path).acquire(patience=0.0)  # given back, and it goes with its last reference too


def test_a_killed_process_frees_the_run_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        assert owner_of(tmp_path) is None
        assert was_abandoned(tmp_path)
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "owner.json").read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert not was_abandoned(tmp_path)


def test_any_thread_may_release(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert owner_of(tmp_path) is None
    lock.release()  # again: nothing to do
    lock.acquire(patience=0.0)
    lock.release()


def test_those_who_only_look_disturb_nobody(tmp_path: Path) -> None:
    """Eight threads look all the time: none sees another's look as an owner, and taking the run succeeds."""
    tell(tmp_path, pid=ended_process())  # a crash left it
    (tmp_path / ".lock").touch()
    seen: list[Owner | None] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.append(owner_of(tmp_path))

    lookers = [threading.Thread(target=look) for _ in range(8)]
    for looker in lookers:
        looker.start()
    try:
        eventually(lambda: len(seen) > 100)
        assert set(seen) == {None}
        for _ in range(5):
            with RunLock(tmp_path):
                pass
    finally:
        ended.set()
        for looker in lookers:
            looker.join()


def test_looking_at_a_folder_changes_nothing(tmp_path: Path) -> None:
    assert owner_of(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert owner_of(tmp_path / "missing") is None


def test_the_heartbeat_goes_on_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.02)

    def heartbeat() -> float:
        owner = owner_of(tmp_path)
        return owner.heartbeat if owner else 0.0

    with RunLock(tmp_path):
        first = heartbeat()
        eventually(lambda: heartbeat() > first)
    assert not [thread for thread in threading.enumerate() if thread.name == f"heartbeat {tmp_path.name}"]
    assert not (tmp_path / "owner.json").exists()


def test_a_full_disk_disturbs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SaveError("the disk is full")

    monkeypatch.setattr(run_lock, "write_atomically", full)
    with RunLock(tmp_path):
        with pytest.raises(RunHeld, match="another process works on this run"):
            RunLock(tmp_path).acquire(patience=0.0)
        assert owner_of(tmp_path) is not None
    assert owner_of(tmp_path) is None


def test_a_deleted_run_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lock = RunLock(run)
    lock.acquire()
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    lock._show_life()
    assert not run.exists()
    lock.release()


def test_a_missing_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing: there is no such"):
        RunLock(tmp_path / "missing").acquire(patience=0.0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").mkdir()
    with pytest.raises(SaveError, match="lock: cannot be written"):
        RunLock(tmp_path).acquire(patience=0.0)


def test_an_owner_on_another_machine_counts_by_its_heartbeat(tmp_path: Path) -> None:
    """Locks of a shared folder do not always reach the other machine."""
    tell(tmp_path, host="elsewhere", pid=7)
    owner = owner_of(tmp_path)
    assert owner is not None
    assert owner.host == "elsewhere"
    with pytest.raises(RunHeld, match="process 7 on elsewhere"):
        RunLock(tmp_path).acquire(patience=0.0)
    tell(tmp_path, host="elsewhere", pid=7, heartbeat=time.time() - 61)
    assert owner_of(tmp_path) is None
    with RunLock(tmp_path):
        pass


def test_a_clock_that_was_ahead_holds_no_run(tmp_path: Path) -> None:
    """A little ahead is an ordinary difference between machines; a day is a clock that was wrong."""
    tell(tmp_path, host="elsewhere", pid=7, heartbeat=time.time() + 120)
    assert owner_of(tmp_path) is not None
    tell(tmp_path, host="elsewhere", pid=7, heartbeat=time.time() + 86_400)
    assert owner_of(tmp_path) is None
    with RunLock(tmp_path):
        pass


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""

    def refuse(path: Path, patience: float = 0.0) -> None:
        raise NoLocks

    monkeypatch.setattr(run_lock, "try_lock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_heartbeat_decides(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        assert owner_of(tmp_path) is not None
        with pytest.raises(RunHeld, match=f"process {os.getpid()} on {HERE}"):
            RunLock(tmp_path).acquire()
    assert owner_of(tmp_path) is None
    for facts in ({"heartbeat": time.time() - 61}, {"pid": ended_process()}):
        tell(tmp_path, **facts)
        assert owner_of(tmp_path) is None
        with RunLock(tmp_path):
            assert owner_of(tmp_path) is not None


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_last_to_write_has_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quick(threading.Thread):
        def start(self) -> None:  # in the moment after we wrote, another does
            super().start()
            tell(tmp_path, pid=os.getppid(), since=1.0)

    monkeypatch.setattr(run_lock.threading, "Thread", Quick)
    with pytest.raises(RunHeld, match=f"process {os.getppid()}"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "owner.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="flock is not Windows'")
def test_a_file_system_without_locks_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(NoLocks):
        try_lock(tmp_path / "lock")
    with RunLock(tmp_path), pytest.raises(RunHeld):
        RunLock(tmp_path).acquire()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"pid": 1}',
        '{"pid": 0, "host": "h", "since": 1, "heartbeat": 1}',
        '{"pid": 1e400, "host": "h", "since": 1, "heartbeat": 1}',
        '{"pid": 1, "host": "h", "since": NaN, "heartbeat": 1}',
        '{"pid": 1, "host": "a\\nb", "since": 1, "heartbeat": 1}',
        '{"pid": 1, "host": "h", "since": 1e300, "heartbeat": 1}',
    ],
)
def test_a_damaged_owner_file_is_no_owner(text: str, tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text(text, encoding="utf-8")
    assert owner_of(tmp_path) is None
    held = try_lock(tmp_path / ".lock")
    assert held is not None
    owner = owner_of(tmp_path)
    assert str(owner) == "another process"
    with pytest.raises(FoundryError, match="another process works"):
        RunLock(tmp_path).acquire(patience=0.0)
    held.release()
    with RunLock(tmp_path):
        pass


def test_an_owner_reads_as_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    noon = time.mktime((2026, 11, 21, 12, 1, 5, 0, 0, -1))
    monkeypatch.setattr(run_lock.time, "time", lambda: noon + 10)
    strftime = time.strftime
    now = time.localtime(noon)
    monkeypatch.setattr(run_lock.time, "strftime", lambda form, moment=now: strftime(form, moment))
    owner = Owner(123, "HOST", noon, noon + 7)
    assert str(owner) == "process 123 on HOST, since 12:01:05, last sign of life 3 s ago"
    assert "since 2026-11-20 12:01:05" in str(Owner(123, "HOST", noon - 86400, noon))
