"""Pages are told what changes, in order and once; without a page, nothing is looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainer_core.config import DatasetConfig, JobConfig
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.run_lock import RunLock

JOB = JobConfig(name="one", datasets=(DatasetConfig(folder="pictures"),))
THREAD = "lora-foundry pages"


class Server:
    """What pages are sent, and whether there are any."""

    def __init__(self) -> None:
        self.connected = True
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.here: set[str] = set()

    def watcher(self, module: ModuleType, runs: Path) -> Any:
        here = lambda: lambda name: {"here": name in self.here}  # noqa: E731
        return module.Watcher(runs, here, lambda: self.connected, lambda event, data: self.sent.append((event, data)))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [data for kind, data in list(self.sent) if kind == event]


@pytest.fixture
def module(pack: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path / "state"))
    watcher = pack("nodes.routes.watcher")
    for name, seconds in (("_EVERY", 0.02), ("_AT_WORK_EVERY", 0.01), ("_PATIENCE", 0.3)):
        monkeypatch.setattr(watcher, name, seconds)
    return watcher


def until(done: Callable[[], Any]) -> Any:
    end = time.monotonic() + 30
    while not (found := done()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def watched() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


def test_only_what_changed_is_told_with_a_number_that_tells_what_was_missed(module: ModuleType, tmp_path: Path) -> None:
    server, runs = Server(), tmp_path / "runs"
    watcher = server.watcher(module, runs)
    first = watcher.runs()
    assert (first["runs"], server.sent) == ([], [])
    run = RunFolder.create(runs, JOB)
    RunFolder.create(runs, JOB).write_status("finished", 5, 5)
    until(lambda: {one["name"] for data in server.of("runs") for one in data["runs"]} == {"one", "one_2"})
    time.sleep(0.1)
    known = len(server.sent)
    time.sleep(0.1)
    assert len(server.sent) == known  # nothing happens, and nothing is told
    server.here.add("one")
    told = until(lambda: [one for data in server.of("runs")[known:] for one in data["runs"]])
    assert [one["name"] for one in told] == ["one"]
    run.path.rename(tmp_path / "elsewhere")
    until(lambda: server.of("runs")[-1]["gone"] == ["one"])
    numbers = [data["revision"] for data in server.of("runs")]
    assert numbers == list(range(first["revision"] + 1, first["revision"] + 1 + len(numbers)))
    again = watcher.runs()
    assert (again["revision"], [one["name"] for one in again["runs"]]) == (numbers[-1], ["one_2"])
    server.connected = False
    until(lambda: not watched())


def test_a_run_at_work_tells_its_points(module: ModuleType, tmp_path: Path) -> None:
    server, runs = Server(), tmp_path / "runs"
    run = RunFolder.create(runs, JOB)
    watcher = server.watcher(module, runs)
    with RunLock(run.path):
        run.write_status("running", 0, 5)
        watcher.runs()  # a page has the lines until now, and is told all that come, also before the first look
        run.append_metrics({"step": 1, "loss": 0.5, "lr": 0.1})
        run.append_metrics({"step": 2, "loss": float("nan"), "lr": 0.1})
        until(lambda: [step for data in server.of("run") for step in data.get("steps", ())] == [1, 2])
        assert [value for data in server.of("run") for value in data["series"]["loss"]] == [0.5, None]
        assert {data["name"] for data in server.of("run")} == {"one"}
    server.connected = False
    until(lambda: not watched())


def test_nobody_looks_without_a_page(module: ModuleType, tmp_path: Path) -> None:
    server, runs = Server(), tmp_path / "runs"
    server.connected = False
    watcher = server.watcher(module, runs)
    assert not watched()
    watcher.runs()
    assert watched()  # the page's socket may come a moment after its question
    until(lambda: not watched())
    RunFolder.create(runs, JOB)
    time.sleep(0.1)
    assert server.sent == []
    server.connected = True
    assert [one["name"] for one in watcher.runs()["runs"]] == ["one"]
    until(lambda: watched())
    server.connected = False
    until(lambda: not watched())
