"""Who works on a run: never two at once, and everybody can ask who it is.

The kernel's lock on `<run>/.lock` decides. Beside it `owner.json` says who holds it, with a heartbeat that is renewed
while the process lives. The heartbeat decides only where the lock cannot be trusted: on file systems without locks, and
for an owner on another machine (locks of a shared folder do not always reach that far).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock

from ..errors import FoundryError, RunError, RunHeld
from ..files import save_error, write_atomically
from ..reading import read_json
from .locks import NoLocks, try_lock

LOCK, OWNER = ".lock", "owner.json"
HEARTBEAT = 5.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""Seconds without one after which an owner counts as dead, where the lock does not say."""
_CLOCKS_DIFFER = 3600.0
"""Seconds by which the clocks of two machines may be apart."""
_GLANCE = 0.25
"""Seconds for which someone may hold a lock only to see whether it is free."""


@dataclass(frozen=True)
class Owner:
    """The process that works on a run; times in seconds since 1970. Process 0: one that has not told its name."""

    pid: int
    host: str
    since: float
    heartbeat: float

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        today = time.strftime("%Y-%m-%d ")
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since)).removeprefix(today)
        silence = max(0, round(time.time() - self.heartbeat))
        return f"process {self.pid} on {self.host}, since {since}, last sign of life {silence} s ago"

    @property
    def elsewhere(self) -> bool:
        """Whether it runs on another machine."""
        return self.host != _here()

    @property
    def fresh(self) -> bool:
        """Whether its last sign of life is recent (the clocks of machines that share a folder should agree)."""
        # one from the future is of a clock that was ahead, and would hold the run until then
        return -_CLOCKS_DIFFER < time.time() - self.heartbeat < DEAD_AFTER

    @property
    def there(self) -> bool:
        """Whether this machine has a process of that number."""
        import psutil

        return not self.elsewhere and psutil.pid_exists(self.pid)


class RunLock:
    """The right to write a run's folder. Two of them exclude one another, in one process as well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: BaseFileLock | None = None
        self._since = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, patience: float = 1.0) -> None:
        """Takes the run, and tells so in owner.json until `release`.

        Someone may just be looking whether the lock is free, so it is tried for `patience` seconds.

        Raises:
            RunHeld: if somebody else works on the run; the message says who.
            RunError: if the run's folder is gone.
            SaveError: if it cannot be written.
        """
        if not self._folder.is_dir():
            raise RunError(f"{self._folder}: there is no such run folder")
        try:
            lock = try_lock(self._folder / LOCK, patience)
            if lock is None:
                raise self._held(owner_of(self._folder))
            owner = _told(self._folder)
            if owner and owner.elsewhere and owner.fresh:
                lock.release()
                raise self._held(owner)
            self._begin(lock)
        except NoLocks:
            if owner := _alive(self._folder):
                raise self._held(owner) from None
            self._begin(None)
            time.sleep(_GLANCE)  # another may have looked at the same moment: the last to write has it
            if (owner := _told(self._folder)) and (owner.pid, owner.since) != (os.getpid(), self._since):
                self._end()
                raise self._held(owner) from None
        except OSError as error:
            raise save_error(self._folder / LOCK, error) from error

    def release(self) -> None:
        """Gives the run back; without effect if it is not held."""
        if self._thread is None:
            return
        self._end()
        for _ in range(5):
            try:
                (self._folder / OWNER).unlink(missing_ok=True)
                break
            except OSError:  # somebody reads it (Windows)
                time.sleep(0.05)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _begin(self, lock: BaseFileLock | None) -> None:
        self._lock, self._since = lock, round(time.time(), 3)
        self._ended = threading.Event()
        self._show_life()
        self._thread = threading.Thread(
            target=self._show_life_until, args=(self._ended,), name=f"heartbeat {self._folder.name}", daemon=True
        )
        self._thread.start()

    def _end(self) -> None:
        """Ends the heartbeat."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def _show_life_until(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT):
            self._show_life()

    def _show_life(self) -> None:
        """Writes owner.json. If that fails (a full disk), the run goes on: the lock is what counts."""
        if not self._folder.is_dir():  # a folder that the user deleted must not come back
            return
        owner = Owner(os.getpid(), _here(), self._since, round(time.time(), 3))
        text = json.dumps(asdict(owner)) + "\n"
        with contextlib.suppress(FoundryError):
            write_atomically(self._folder / OWNER, text.encode(), durably=False, inside=self._folder)

    def _held(self, owner: Owner | None) -> RunHeld:
        return RunHeld(
            f"{self._folder}: {owner or 'another process'} works on this run, and only one may. Wait for it, or stop "
            f'it with: lora-foundry tell "{self._folder}" stop'
        )


def owner_of(folder: Path) -> Owner | None:
    """Who works on a run now; None if nobody does. Changes nothing, and leaves no lock behind."""
    deadline = time.monotonic() + _GLANCE
    while True:
        locked = _is_locked(folder)
        if locked is None:
            return _alive(folder)
        owner = _told(folder)
        if not locked:
            return owner if owner and owner.elsewhere and owner.fresh else None
        if owner and owner.there:
            return owner
        # The lock is held, but by whom? Someone who only looks, or who has not told yet, is given a moment.
        if time.monotonic() >= deadline:
            return owner or Owner(0, "", 0.0, 0.0)
        time.sleep(0.02)


def was_abandoned(folder: Path) -> bool:
    """Whether the last owner of a run that nobody works on ended without giving it back: it was killed."""
    return (folder / OWNER).exists()


def _is_locked(folder: Path) -> bool | None:
    """Whether the kernel's lock is held; None if it cannot say."""
    path = folder / LOCK
    try:
        if not path.exists():
            return None
        lock = try_lock(path)
    except (NoLocks, OSError):
        return None
    if lock is not None:
        lock.release()
    return lock is None


def _alive(folder: Path) -> Owner | None:
    """The owner as the heartbeat alone tells it."""
    owner = _told(folder)
    return owner if owner and owner.fresh and (owner.elsewhere or owner.there) else None


def _told(folder: Path) -> Owner | None:
    """What owner.json says, if it is there and makes sense."""
    try:
        found = read_json(folder / OWNER, limit=10_000)
        owner = Owner(int(found["pid"]), str(found["host"]), float(found["since"]), float(found["heartbeat"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    sensible = 0 < owner.pid < 2**31 and 0 <= owner.since < 2**33 and 0 <= owner.heartbeat < 2**33
    return owner if sensible and len(owner.host) < 256 and owner.host.isprintable() else None


def _here() -> str:
    return platform.node() or "this machine"
