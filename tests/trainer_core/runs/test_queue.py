"""The queue, with real processes that join it, train, die and come back."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.errors import RunError, RunHeld, SaveError
from trainer_core.runs import queue_files
from trainer_core.runs.locks import NoLocks, try_lock
from trainer_core.runs.queue import DeviceQueue, Ticket, device_key, queues, state_folder

OBEY = """
import sys
from pathlib import Path
from trainer_core.runs.queue import DeviceQueue
ticket = DeviceQueue("cpu").join(Path(sys.argv[1]))
print("joined", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "ahead":
        print(*[one.run.name for one in ticket.ahead()], flush=True)
    else:
        print(getattr(ticket, word)(), flush=True)
"""
TAKE_TURNS = """
import sys, time
from pathlib import Path
from trainer_core.runs.queue import DeviceQueue
run, device = Path(sys.argv[1]), Path(sys.argv[2])
for turn in range(4):
    ticket = DeviceQueue("cpu").join(run)
    while not ticket.try_enter():
        time.sleep(0.002)
    device.touch(exist_ok=False)  # fails if another process is in
    time.sleep(0.002)
    device.unlink()
    if turn == 1:
        ticket.yield_device()
        while not ticket.try_enter():
            time.sleep(0.002)
        device.touch(exist_ok=False)
        device.unlink()
    ticket.leave()
"""


class Worker:
    """A process that stands in the queue for a run and does as it is told."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-c", OBEY, str(run)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._answer() == "joined"

    def ask(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._answer()

    def enters(self) -> bool:
        return {"True": True, "False": False}[self.ask("try_enter")]

    def die(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[str], Worker]]:
    """Starts a process for the run of a name."""
    with ExitStack() as ends:

        def start(name: str) -> Worker:
            one = Worker(tmp_path / name)
            ends.callback(one.die)
            return one

        yield start


def names(queue: DeviceQueue | None = None) -> list[str]:
    return [one.run.name for one in (queue or DeviceQueue("cpu")).tickets()]


def test_one_after_the_other_in_order(worker: Callable[[str], Worker]) -> None:
    first, second, third = worker("c"), worker("a"), worker("b")
    assert [second.enters(), third.enters(), first.enters()] == [False, False, True]
    assert first.enters(), "it still has it"
    assert (first.ask("ahead"), second.ask("ahead"), third.ask("ahead")) == ("", "c", "c a")
    assert [(one.run.name, one.live, one.running) for one in DeviceQueue("cpu").tickets()] == [
        ("c", True, True),
        ("a", True, False),
        ("b", True, False),
    ]
    first.ask("leave")
    assert [third.enters(), second.enters(), third.enters()] == [False, True, False]
    assert names() == ["a", "b"]
    second.ask("leave")
    assert third.enters()


def test_a_killed_waiter_blocks_nobody_and_keeps_its_place(worker: Callable[[str], Worker]) -> None:
    first, second, third = worker("a"), worker("b"), worker("c")
    assert first.enters()
    second.die()
    assert third.ask("ahead") == "a"
    first.ask("leave")
    assert third.enters()
    assert [(one.run.name, one.live) for one in DeviceQueue("cpu").tickets()] == [("b", False), ("c", True)]
    late, again = worker("d"), worker("b")
    assert again.ask("ahead") == "c", "the one that has the device, though it stands behind"
    third.ask("leave")
    assert [late.enters(), again.enters()] == [False, True]


def test_a_killed_holder_frees_the_device_at_once(worker: Callable[[str], Worker]) -> None:
    first, second, third = worker("a"), worker("b"), worker("c")
    assert first.enters()
    first.die()
    assert not any(one.running for one in DeviceQueue("cpu").tickets())
    assert [third.enters(), second.enters()] == [False, True]
    again = worker("a")
    assert not again.enters()
    second.ask("leave")
    assert [third.enters(), again.enters()] == [False, True]


def test_a_pause_gives_the_device_up_and_keeps_the_place(worker: Callable[[str], Worker]) -> None:
    first, second, third = worker("a"), worker("b"), worker("c")
    assert first.enters()
    first.ask("yield_device")
    assert second.ask("ahead") == ""
    assert second.enters()
    assert names() == ["a", "b", "c"]
    assert not first.enters(), "it waits again"
    second.ask("leave")
    assert [third.enters(), first.enters()] == [False, True]


def test_the_order_survives_a_restart(worker: Callable[[str], Worker], tmp_path: Path) -> None:
    workers = [worker(name) for name in ("b", "c", "a")]
    assert workers[0].enters()
    for one in workers:
        one.die()
    order = DeviceQueue("cpu").tickets()
    assert [(one.run, one.live, one.running) for one in order] == [
        (tmp_path / name, False, False) for name in ("b", "c", "a")
    ]
    late, last, first = worker("late"), worker("a"), worker("b")
    assert [late.enters(), last.enters(), first.enters()] == [False, False, True]
    assert names() == ["b", "c", "a", "late"]


def test_two_never_have_the_device(tmp_path: Path) -> None:
    """Five processes join, take turns, pause and leave as fast as they can."""
    command = [sys.executable, "-c", TAKE_TURNS]
    workers = [subprocess.Popen([*command, str(tmp_path / f"run{k}"), str(tmp_path / "device")]) for k in range(5)]
    assert [one.wait(timeout=120) for one in workers] == [0] * 5
    assert DeviceQueue("cpu").tickets() == []


def test_threads_of_one_process_wait_for_one_another(tmp_path: Path) -> None:
    inside, most, ended = [0], [0], []

    def work(name: str) -> None:
        for _ in range(5):
            ticket = DeviceQueue("cpu").join(tmp_path / name)
            while not ticket.try_enter():
                pass
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1
            ticket.leave()
        ended.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert (sorted(ended), most) == (["a", "b", "c"], [1])


OPERATIONS = st.lists(st.tuples(st.sampled_from(["join", "enter", "yield", "leave", "die", "move"]), st.integers(0, 3)))


@given(OPERATIONS)
def test_it_does_what_a_list_of_names_would(operations: list[tuple[str, int]]) -> None:
    """The model: who is in line, who of them is there, and who has the device."""
    line: list[int] = []
    there: set[int] = set()
    holder: int | None = None
    tickets: dict[int, Ticket] = {}
    with TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        queue = DeviceQueue("cpu", root)
        for operation, who in operations:
            run = root / str(who)
            if operation == "join" and who not in there and who not in tickets:
                tickets[who] = queue.join(run)
                line += [] if who in line else [who]
                there.add(who)
            elif operation == "enter" and who in tickets:
                line += [] if who in line else [who]
                there.add(who)
                first = next(one for one in line if one in there)
                if holder is None and first == who:
                    holder = who
                assert tickets[who].try_enter() == (holder == who)
            elif operation == "move" and who in line:
                line.remove(who)
                line.insert(1, who)
                queue.move(run, 2)
            elif operation in {"yield", "leave", "die"} and who in tickets:
                holder = None if holder == who else holder
                there.discard(who)
                if operation == "yield":
                    tickets[who].yield_device()
                elif operation == "leave":
                    line = [one for one in line if one != who]
                    tickets.pop(who).leave()
                else:
                    tickets.pop(who)._release()  # what the kernel does
            found = [(int(one.run.name), one.live, one.running) for one in queue.tickets()]
            assert found == [(one, one in there, one == holder) for one in line]
        for ticket in tickets.values():
            ticket.leave()


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


def test_who_has_the_device_keeps_it_when_others_are_put_before_it(tmp_path: Path) -> None:
    queue = DeviceQueue("cpu")
    first, second = queue.join(tmp_path / "a"), queue.join(tmp_path / "b")
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


def test_one_process_stands_for_a_run(tmp_path: Path) -> None:
    queue = DeviceQueue("cpu")
    ticket = queue.join(tmp_path / "a")
    with pytest.raises(RunHeld, match="another process stands in the queue"):
        queue.join(tmp_path / "a")
    ticket.leave()
    queue.join(tmp_path / "a").leave()


def test_devices_have_queues_of_their_own(tmp_path: Path) -> None:
    assert queues() == []
    tickets = [DeviceQueue(key).join(tmp_path / "a") for key in ("cuda-1:2", "cpu")]
    assert all(ticket.try_enter() for ticket in tickets)
    assert [names(queue) for queue in queues()] == [["a"], ["a"]]
    for ticket in tickets:
        ticket.leave()


# trouble


def test_a_damaged_ticket_is_passed_over_and_mended(tmp_path: Path) -> None:
    queue = DeviceQueue("cpu")
    for name in "abc":
        queue.add(tmp_path / name)
    file = sorted(state_folder().glob("queue/cpu/tickets/*.json"))[1]
    for damage in ("", "[]", '{"run": "/elsewhere", "queued_at": 1}', '{"run": 7, "queued_at": 1}'):
        file.write_text(damage, encoding="utf-8")
        (file.parent / "not a ticket").touch()
        assert names() == ["a", "c"]
        queue.join(tmp_path / "b")._release()
        assert names() == ["a", "b", "c"], "at its old place"


def test_a_ticket_that_somebody_took_away_comes_back_at_the_end(tmp_path: Path) -> None:
    queue = DeviceQueue("cpu")
    ticket = queue.join(tmp_path / "a")
    queue.add(tmp_path / "b")
    sorted(state_folder().glob("queue/cpu/tickets/*.json"))[0].unlink()
    assert ticket.try_enter()
    assert names() == ["b", "a"]
    ticket.leave()


def test_looking_makes_no_files() -> None:
    assert DeviceQueue("cpu").tickets() == []
    assert not state_folder().exists() or list(state_folder().iterdir()) == []


def test_a_folder_that_cannot_be_used_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="file"):
        DeviceQueue("cpu", tmp_path / "file").join(tmp_path / "a")

    def refuse(path: Path, patience: float = 0.0) -> None:
        raise NoLocks

    monkeypatch.setattr(queue_files, "try_lock", refuse)
    with pytest.raises(SaveError, match=r"no locks.* Set LORA_FOUNDRY_STATE"):
        DeviceQueue("cpu").join(tmp_path / "a")


def test_a_halted_process_makes_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_files, "_PATIENCE", 0.05)
    queue = DeviceQueue("cpu")
    ticket = queue.join(tmp_path / "a")
    halted = try_lock(state_folder() / "queue" / "cpu" / "queue.lock")
    assert halted is not None
    assert not ticket.try_enter()
    with pytest.raises(SaveError, match="kept the queue to itself"):
        queue.tickets()
    halted.release()
    assert ticket.try_enter()
    halted = try_lock(state_folder() / "queue" / "cpu" / "queue.lock")
    assert halted is not None
    ticket.leave()  # does not fail, and frees the device
    halted.release()
    assert [(one.live, one.running) for one in queue.tickets()] == [(False, False)]


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
