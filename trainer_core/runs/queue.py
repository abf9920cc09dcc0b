"""Runs that want the same device wait for one another: from all runs folders and processes of a user, one at a time.

A device's queue is a JSON list, read and changed by whoever holds its lock. The first live run takes the device's lock
and trains. A run is live while a process works on it and it is not paused; others keep their place and block nobody.
The kernel frees the locks of a process that dies.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import BaseFileLock

from ..errors import RunError, RunHeld, SaveError
from ..files import save_error, state_folder, write_atomically
from ..reading import read_json
from .locks import NoLocks, try_lock
from .run_lock import owner_of

if TYPE_CHECKING:
    import torch

_PATIENCE = 20.0
"""Seconds to wait for others that look at the queue; each needs milliseconds."""


class QueueBusy(SaveError):
    """Another process has kept the queue to itself for too long (it may be halted)."""


@dataclass
class Waiting:
    """A run in the queue."""

    run: Path
    queued_at: float
    """Seconds since 1970."""
    paused: bool = False
    """It has stepped aside, and keeps its place."""
    running: bool = False
    """It has the device."""

    @property
    def live(self) -> bool:
        """Whether a process waits or trains for it; not so for one that is paused, or waits for `queue start`."""
        return not self.paused and owner_of(self.run) is not None


def device_key(device: torch.device) -> str:
    """The name of a device's queue: the same for every process, whatever CUDA_VISIBLE_DEVICES makes of its number."""
    if device.type == "cuda":
        import torch

        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        return f"cuda-{uuid or device.index or 0}"
    return device.type if device.type in {"cpu", "mps"} else f"{device.type}-{device.index or 0}"


def queues() -> list[DeviceQueue]:
    """The queues of all devices that ever had one."""
    return [DeviceQueue(path.stem) for path in sorted((state_folder() / "queue").glob("*.json"))]


def queue_places(on_error: Callable[[SaveError], None] = lambda _: None) -> dict[Path, tuple[int, str]]:
    """The place of every run that waits or trains, from 1, and its device's key.

    Args:
        on_error: hears of queues that cannot be read.
    """
    places = {}
    for queue in queues():
        try:
            places.update({one.run: (place, queue.key) for place, one in enumerate(queue.tickets(), start=1)})
        except SaveError as error:
            on_error(error)
    return places


def queue_marks() -> tuple[tuple[int, int] | None, ...]:
    """What changes when a queue does."""
    marks: list[tuple[int, int] | None] = []
    for path in sorted((state_folder() / "queue").glob("*.json")):
        with suppress(OSError):
            status = path.stat()
            marks.append((status.st_mtime_ns, status.st_size))
    return tuple(marks)


class DeviceQueue:
    """The runs that wait for one device, and the one that has it.

    Whatever is asked of it raises SaveError if its file cannot be read or written, and RunError for a run that should
    be in it and is not.
    """

    def __init__(self, key: str) -> None:
        """`key` comes from `device_key`."""
        self.key = re.sub(r"[^\w.-]", "_", key)
        self._list = state_folder() / "queue" / f"{self.key}.json"

    def tickets(self) -> list[Waiting]:
        """All runs in order."""
        if not self._list.exists():
            return []
        with self.alone() as order:
            return order

    def join(self, run: Path) -> Ticket:
        """Stands in the queue for a run whose lock the caller holds: at its old place, or at the end."""
        return Ticket(self, run.resolve())

    def add(self, run: Path) -> None:
        """Gives a run a place without a process behind it, unless it has one."""
        with self.alone() as order:
            _added(order, run.resolve())

    def move(self, run: Path, place: int) -> None:
        """Puts a run at a place, counted from 1; who has the device keeps it."""
        with self.alone() as order:
            order.insert(max(place, 1) - 1, order.pop(_place(order, run)))

    def remove(self, run: Path) -> None:
        """Takes a run out of the queue that no process stands behind.

        Raises:
            RunHeld: if a process stands behind it, which has to be stopped instead.
        """
        with self.alone() as order:
            if order.pop(_place(order, run)).live:
                raise RunHeld(f'{run}: a process stands in the queue for it. Stop it: lora-foundry tell "{run}" stop')

    @contextmanager
    def alone(self) -> Iterator[list[Waiting]]:
        """The runs in order, while nobody else looks at them or changes them; what is made of the list is kept.

        Raises:
            SaveError: if that cannot be had, or if what is done then fails for a reason of the system.
        """
        try:
            self._list.parent.mkdir(parents=True, exist_ok=True)
            lock = try_lock(self._list.with_suffix(".lock"), _PATIENCE)
            if lock is None:
                raise QueueBusy(f"{self._list}: another process has kept the queue to itself for {_PATIENCE:.0f} s")
            try:
                order = self._read()
                before = _text(order)
                yield order
                if _text(order) != before:
                    write_atomically(self._list, _text(order).encode())
            finally:
                lock.release()
        except NoLocks:
            raise SaveError(
                f"{self._list.parent}: this file system has no locks, so runs cannot wait for one another. Set "
                "LORA_FOUNDRY_STATE to a folder on another one"
            ) from None
        except OSError as error:
            raise save_error(self._list.parent, error) from error

    def device(self) -> BaseFileLock | None:
        """The device's lock; None if another run has it. To be asked for inside `alone`."""
        return try_lock(self._list.with_suffix(".device.lock"))

    def _read(self) -> list[Waiting]:
        """The list; of a damaged one what makes sense. Those that wait put themselves into it again."""
        order: list[Waiting] = []
        if free := self.device():
            free.release()
        with suppress(OSError, ValueError, TypeError):
            for one in read_json(self._list):
                with suppress(ValueError, KeyError, TypeError, OverflowError):
                    running = free is None and one["running"] is True
                    order.append(Waiting(Path(one["run"]), float(one["queued_at"]), one["paused"] is True, running))
        return order


class Ticket:
    """A run's place in the queue, with this process behind it. SaveErrors as of `DeviceQueue`, but for `leave`."""

    def __init__(self, queue: DeviceQueue, run: Path) -> None:
        self.run = run
        self._queue = queue
        self._device: BaseFileLock | None = None
        with queue.alone() as order:
            self._stand(order)

    def ahead(self) -> list[Waiting]:
        """Whom this run waits for: the live ones before it, and the one that has the device."""
        order = self._queue.tickets()
        place = next((k for k, one in enumerate(order) if one.run == self.run), len(order))
        return [one for k, one in enumerate(order) if one.run != self.run and (one.running or (k < place and one.live))]

    def try_enter(self) -> bool:
        """Takes the device if it is this run's turn; True while it has it."""
        if self._device is not None:
            return True
        try:
            with self._queue.alone() as order:
                if not any(one.live for one in order[: self._stand(order)]):
                    self._device = self._queue.device()
                if self._device is not None:
                    for one in order:
                        one.running = one.run == self.run
        except QueueBusy:
            return False
        except SaveError:
            if self._device is None:
                raise  # otherwise nobody can read who has the device, but its lock counts
        return self._device is not None

    def leave(self, keep_place: bool = False) -> None:
        """Gives the device up, and the place too unless it is kept; `try_enter` waits there again."""
        with suppress(RunError), self._queue.alone() as order:  # this ends a run, and must not fail it
            self._release()
            place = _place(order, self.run)
            order[place].paused, order[place].running = True, False
            if not keep_place:
                del order[place]
        self._release()

    def _stand(self, order: list[Waiting]) -> int:
        """Puts the run into the list if it is not there (any more), and ends its pause; gives its index."""
        place = _added(order, self.run)
        order[place].paused = False
        return place

    def _release(self) -> None:
        if self._device is not None:
            self._device.release()
            self._device = None


def _place(order: list[Waiting], run: Path) -> int:
    for place, one in enumerate(order):
        if one.run == run.resolve():
            return place
    raise RunError(f"{run}: is not in the queue")


def _added(order: list[Waiting], run: Path) -> int:
    """The index of a run, which comes to the end if it is not there."""
    if all(one.run != run for one in order):
        order.append(Waiting(run, round(time.time(), 3)))
    return _place(order, run)


def _text(order: list[Waiting]) -> str:
    return json.dumps([{**asdict(one), "run": str(one.run)} for one in order], indent=2) + "\n"
