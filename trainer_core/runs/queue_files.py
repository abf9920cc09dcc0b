"""The files and locks of a device's queue. What looks at them or changes them does so inside `alone`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock

from ..errors import SaveError
from ..files import save_error, write_atomically
from ..reading import read_json
from .locks import NoLocks, try_lock

_PATIENCE = 20.0
"""Seconds to wait for others that look at the queue; each needs milliseconds."""
_NAME = re.compile(r"(\d{8})-([0-9a-f]{16})\.json")


class QueueBusy(SaveError):
    """Another process has kept the queue to itself for too long (it may be halted)."""


@dataclass(frozen=True)
class Waiting:
    """A run in the queue."""

    run: Path
    queued_at: float
    """Seconds since 1970."""
    live: bool
    """A process stands behind it; not so for a paused run, or one that waits for `queue start`."""
    running: bool
    """It has the device."""


class TicketFile(NamedTuple):
    """What the name of a ticket's file says."""

    number: int
    key: str


class QueueFiles:
    """A folder with a file for each ticket (its name sorts by place), a lock for each claim, and the device's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tickets, self._claims = folder / "tickets", folder / "claims"
        self._device_lock, self._device_holder = folder / "device.lock", folder / "device"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else looks at this queue or changes it meanwhile.

        Raises:
            SaveError: if that cannot be had, or if what is done then fails for a reason of the system.
        """
        try:
            self._tickets.mkdir(parents=True, exist_ok=True)
            self._claims.mkdir(exist_ok=True)
            lock = try_lock(self.folder / "queue.lock", _PATIENCE)
            if lock is None:
                raise QueueBusy(f"{self.folder}: another process has kept the queue to itself for {_PATIENCE:.0f} s")
            try:
                yield
            finally:
                lock.release()
        except NoLocks:
            raise SaveError(
                f"{self.folder}: this file system has no locks, so runs cannot wait for one another. Set "
                "LORA_FOUNDRY_STATE to a folder on another one"
            ) from None
        except OSError as error:
            raise save_error(self.folder, error) from error

    # tickets

    def in_order(self) -> list[Waiting]:
        """All runs by place. A damaged ticket is left out; it is mended when its run comes back."""
        holder = self._holder()
        order = []
        for file in self.tickets():
            try:
                told = read_json(self._path(file), limit=100_000)
                run, queued_at = Path(told["run"]), float(told["queued_at"])
            except (OSError, ValueError, KeyError, TypeError, OverflowError):
                continue
            if key_of(run) == file.key:
                order.append(Waiting(run, queued_at, self._is_claimed(file.key), file.key == holder))
        return order

    def tickets(self) -> list[TicketFile]:
        """The tickets' files by place, damaged ones too."""
        matches = [_NAME.fullmatch(path.name) for path in self._tickets.iterdir()]
        return sorted(TicketFile(int(match[1]), match[2]) for match in matches if match)

    def add(self, run: Path) -> None:
        """Writes a run's ticket, unless it has one that can be read."""
        if any(one.run == run for one in self.in_order()):
            return
        there, key = self.tickets(), key_of(run)
        old = [one.number for one in there if one.key == key]
        number = old[0] if old else max([one.number for one in there], default=0) + 1
        facts = {"run": str(run), "name": run.name, "queued_at": round(time.time(), 3)}
        write_atomically(self._path(TicketFile(number, key)), (json.dumps(facts, indent=2) + "\n").encode())

    def renumber(self, order: Sequence[TicketFile]) -> None:
        """Gives the tickets the places 1, 2 … in this order."""
        for number, file in enumerate(order, start=1):
            if file.number != number:
                os.replace(self._path(file), self._path(TicketFile(number, file.key)))

    def drop(self, key: str) -> None:
        """Deletes a run's ticket; the claim must be free."""
        for file in self.tickets():
            if file.key == key:
                self._path(file).unlink(missing_ok=True)
        self._claim_path(key).unlink(missing_ok=True)

    def _path(self, file: TicketFile) -> Path:
        return self._tickets / f"{file.number:08d}-{file.key}.json"

    # locks

    def claim(self, key: str) -> BaseFileLock | None:
        """The right to stand in the queue for a run; None if another process does."""
        return try_lock(self._claim_path(key))

    def enter(self, key: str) -> BaseFileLock | None:
        """The device's lock; None if another run has it."""
        lock = try_lock(self._device_lock)
        if lock is not None:
            try:
                write_atomically(self._device_holder, key.encode(), durably=False)
            except SaveError:  # a full disk: nobody can read who has the device then, but the lock counts
                with suppress(OSError):
                    self._device_holder.unlink(missing_ok=True)
        return lock

    def _holder(self) -> str | None:
        """Whose ticket has the device."""
        try:
            return self._device_holder.read_text(encoding="ascii") if _is_locked(self._device_lock) else None
        except (OSError, ValueError):
            return None

    def _is_claimed(self, key: str) -> bool:
        return _is_locked(self._claim_path(key))

    def _claim_path(self, key: str) -> Path:
        return self._claims / f"{key}.lock"


def key_of(run: Path) -> str:
    """A run's folder as a short file name."""
    return hashlib.sha256(os.path.normcase(run).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    lock = try_lock(path)
    if lock is not None:
        lock.release()
    return lock is None
