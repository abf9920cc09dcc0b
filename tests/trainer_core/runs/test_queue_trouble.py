"""The queue when somebody changes its order, damages its file, or halts; and the names of devices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer_core.errors import RunError, RunHeld, SaveError
from trainer_core.files import state_folder
from trainer_core.runs import queue as queue_module
from trainer_core.runs.locks import NoLocks, try_lock
from trainer_core.runs.queue import DeviceQueue, device_key, queues
from trainer_core.runs.run_lock import RunLock

from .test_queue import names

# changes by hand


def test_move_and_remove(tmp_path: Path) -> None:
    queue = DeviceQueue("cpu")
    for name in "abcd":
        queue.add(tmp_path / name)
    queue.add(tmp_path / "b")
    assert names() == ["a", "b", "c", "d"]
    queue.move(tmp_path / "d", 1)
    queue.move(tmp_path / "a", 99)
    queue.move(tmp_path / "c", 2)
    assert names() == ["d", "c", "b", "a"]
    queue.remove(tmp_path / "c")
    queue.add(tmp_path / "e")
    assert names() == ["d", "b", "a", "e"]
    with pytest.raises(RunError, match="c: is not in the queue"):
        queue.move(tmp_path / "c", 1)
    with pytest.raises(RunError, match="c: is not in the queue"):
        queue.remove(tmp_path / "c")


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[list[Path]]:
    """Folders of two runs that this process works on."""
    runs = [tmp_path / "a", tmp_path / "b"]
    with ExitStack() as locks:
        for run in runs:
            run.mkdir()
            locks.enter_context(RunLock(run))
        yield runs


def test_who_has_the_device_keeps_it_when_others_are_put_before_it(tmp_path: Path, at_work: list[Path]) -> None:
    queue = DeviceQueue("cpu")
    first, second = (queue.join(run) for run in at_work)
    assert first.try_enter()
    queue.move(tmp_path / "b", 1)
    assert names() == ["b", "a"]
    assert not second.try_enter()
    assert [one.run.name for one in second.ahead()] == ["a"]
    assert first.try_enter()
    with pytest.raises(RunHeld, match="a process stands in the queue for it"):
        queue.remove(tmp_path / "b")
    first.leave()
    assert second.try_enter()
    second.leave()


def test_devices_have_queues_of_their_own(tmp_path: Path) -> None:
    assert queues() == []
    tickets = [DeviceQueue(key).join(tmp_path / "a") for key in ("cuda-1:2", "cpu")]
    assert all(ticket.try_enter() for ticket in tickets)
    assert [names(queue) for queue in queues()] == [["a"], ["a"]]
    for ticket in tickets:
        ticket.leave()


# trouble


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"run": 7}', "\x00" * 9, "[" * 9999])
def test_a_damaged_list_is_made_again_by_those_that_wait(damage: str, tmp_path: Path, at_work: list[Path]) -> None:
    queue = DeviceQueue("cpu")
    holder, waiter = (queue.join(run) for run in at_work)
    assert holder.try_enter()
    (state_folder() / "queue" / "cpu.json").write_text(damage, encoding="utf-8")
    assert queue.tickets() == []
    assert not waiter.try_enter(), "the device is taken, whatever the list says"
    assert names() == ["b"]
    holder.leave()
    assert waiter.try_enter()
    waiter.leave()


def test_entries_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    queue = DeviceQueue("cpu")
    for name in "abc":
        queue.add(tmp_path / name)
    file = state_folder() / "queue" / "cpu.json"
    order = json.loads(file.read_text(encoding="utf-8"))
    for damage in ({"run": 7}, {"queued_at": "now"}, {"queued_at": [1]}, {"paused": "half"}, 7, None, []):
        spoiled = {**order[1], **damage} if isinstance(damage, dict) else damage
        file.write_text(json.dumps([order[0], spoiled, order[2]]), encoding="utf-8")
        assert names() in (["a", "c"], ["a", "b", "c"])
        assert [one.paused for one in queue.tickets()] == [False] * len(queue.tickets())


def test_a_run_that_somebody_took_out_comes_back_at_the_end(tmp_path: Path, at_work: list[Path]) -> None:
    queue = DeviceQueue("cpu")
    ticket = queue.join(at_work[0])
    queue.add(tmp_path / "c")
    with queue.alone() as order:
        del order[0]
    assert ticket.try_enter()
    assert names() == ["c", "a"]
    ticket.leave()


def test_looking_makes_no_files() -> None:
    assert DeviceQueue("cpu").tickets() == []
    assert not state_folder().exists() or list(state_folder().iterdir()) == []


def test_a_folder_that_cannot_be_used_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setenv("LORA_FOUNDRY_STATE", str(tmp_path / "file"))
        with pytest.raises(SaveError, match="file"):
            DeviceQueue("cpu").join(tmp_path / "a")

    def refuse(path: Path, patience: float = 0.0) -> None:
        raise NoLocks

    monkeypatch.setattr(queue_module, "try_lock", refuse)
    with pytest.raises(SaveError, match=r"no locks.* Set LORA_FOUNDRY_STATE"):
        DeviceQueue("cpu").join(tmp_path / "a")


def test_a_halted_process_makes_others_wait(monkeypatch: pytest.MonkeyPatch, at_work: list[Path]) -> None:
    monkeypatch.setattr(queue_module, "_PATIENCE", 0.05)
    queue = DeviceQueue("cpu")
    ticket, other = (queue.join(run) for run in at_work)
    halted = try_lock(state_folder() / "queue" / "cpu.lock")
    assert halted is not None
    assert not ticket.try_enter()
    with pytest.raises(SaveError, match="kept the queue to itself"):
        queue.tickets()
    halted.release()
    assert ticket.try_enter()
    halted = try_lock(state_folder() / "queue" / "cpu.lock")
    assert halted is not None
    ticket.leave()  # does not fail, and frees the device
    halted.release()
    assert not any(one.running for one in queue.tickets())
    queue.move(at_work[1], 1)
    assert other.try_enter()
    other.leave()


def test_a_full_disk_takes_nobody_the_device(monkeypatch: pytest.MonkeyPatch, at_work: list[Path]) -> None:
    queue = DeviceQueue("cpu")
    ticket, other = (queue.join(run) for run in at_work)

    def full(*_: object, **__: object) -> None:
        raise SaveError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(queue_module, "write_atomically", full)
        assert ticket.try_enter()
        assert not other.try_enter()
        ticket.leave()
    assert ticket.try_enter()
    ticket.leave()
    assert other.try_enter()
    other.leave()


# names


def test_a_device_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid={None: "0-0", 0: "0-0", 1: "1-1"}[device.index])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found = [device_key(torch.device(name)) for name in ("cpu", "mps", "mps:0", "cuda", "cuda:0", "cuda:1", "xpu:0")]
    assert found == ["cpu", "mps", "mps", "cuda-0-0", "cuda-0-0", "cuda-1-1", "xpu-0"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert device_key(torch.device("cuda:1")) == "cuda-1", "an old torch tells none"


def test_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path))
    assert state_folder() == tmp_path
    monkeypatch.delenv("LORA_FOUNDRY_STATE")
    assert state_folder().is_absolute()
    assert "lora_foundry" in state_folder().parts
