"""The queue, with real processes that join it, train, die and come back."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.runs import queue as queue_module
from trainer_core.runs.queue import DeviceQueue, Ticket
from trainer_core.runs.run_lock import RunLock

OBEY = """
import sys
from pathlib import Path
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_lock import RunLock
run = Path(sys.argv[1])
lock = RunLock(run)
lock.acquire()
ticket = DeviceQueue("cpu").join(run)
print("joined", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "ahead":
        print(*[one.run.name for one in ticket.ahead()], flush=True)
    elif word == "pause":
        print(ticket.leave(keep_place=True), flush=True)
    else:
        print(getattr(ticket, word)(), flush=True)
"""
TAKE_TURNS = """
import sys, time
from pathlib import Path
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_lock import RunLock
run, device = Path(sys.argv[1]), Path(sys.argv[2])
run.mkdir()
lock = RunLock(run)
lock.acquire()
for turn in range(4):
    ticket = DeviceQueue("cpu").join(run)
    while not ticket.try_enter():
        time.sleep(0.002)
    device.touch(exist_ok=False)  # fails if another process is in
    time.sleep(0.002)
    device.unlink()
    if turn == 1:
        ticket.leave(keep_place=True)
        while not ticket.try_enter():
            time.sleep(0.002)
        device.touch(exist_ok=False)
        device.unlink()
    ticket.leave()
"""


class Worker:
    """A process that stands in the queue for a run and does as it is told."""

    def __init__(self, run: Path) -> None:
        run.mkdir(exist_ok=True)
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
    first.ask("pause")
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
        (tmp_path / name).mkdir()
        with RunLock(tmp_path / name):
            take_turns(name)

    def take_turns(name: str) -> None:
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
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder).resolve()
        patch.setenv("LORA_FOUNDRY_STATE", folder)
        # who works on a run is for its lock to say, which the other tests have
        patch.setattr(queue_module, "owner_of", lambda run: int(run.name) in tickets or None)
        queue = DeviceQueue("cpu")
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
                    tickets[who].leave(keep_place=True)
                elif operation == "leave":
                    line = [one for one in line if one != who]
                    tickets.pop(who).leave()
                else:
                    tickets.pop(who)._release()  # what the kernel does
            found = [(int(one.run.name), one.live, one.running) for one in queue.tickets()]
            assert found == [(one, one in there, one == holder) for one in line]
        for ticket in tickets.values():
            ticket.leave()
