"""Runs that want the same device wait for one another: from all runs folders and processes of a user, one at a time.

Each waiting or training run has a ticket. A process that stands behind its ticket holds a lock (the claim), so the
ticket of a dead process, or of a paused run, blocks nobody, and keeps its place for the run to come back. Whoever is
first of those that are there takes the device's lock and trains. The kernel frees the locks of a process that dies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import BaseFileLock

from ..errors import RunError, RunHeld, SaveError
from ..files import state_folder
from .queue_files import QueueBusy, QueueFiles, Waiting, key_of

if TYPE_CHECKING:
    import torch


def device_key(device: torch.device) -> str:
    """The name of a device's queue: the same for every process, whatever CUDA_VISIBLE_DEVICES makes of its number."""
    if device.type == "cuda":
        import torch

        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        return f"cuda-{uuid or device.index or 0}"
    return device.type if device.type in {"cpu", "mps"} else f"{device.type}-{device.index or 0}"


def queues(root: Path | None = None) -> list[DeviceQueue]:
    """The queues of all devices that ever had one."""
    try:
        folders = sorted(path for path in _queues_folder(root).iterdir() if path.is_dir())
    except OSError:
        return []
    return [DeviceQueue(path.name, root) for path in folders]


class DeviceQueue:
    """The runs that wait for one device, and the one that has it."""

    def __init__(self, key: str, root: Path | None = None) -> None:
        """`key` comes from `device_key`; `root` is in place of `state_folder()`."""
        self.key = key
        self._files = QueueFiles(_queues_folder(root) / re.sub(r"[^\w.-]", "_", key))

    def join(self, run: Path) -> Ticket:
        """Stands in the queue for a run: at the place of its old ticket, or at the end.

        Raises:
            RunHeld: if another process stands there for it already.
            SaveError: if the queue's folder cannot be written.
        """
        return Ticket(self._files, run.resolve())

    def add(self, run: Path) -> None:
        """Gives a run a place without a process behind it, unless it has one.

        Raises:
            SaveError: if the queue's folder cannot be written.
        """
        with self._files.alone():
            self._files.add(run.resolve())

    def tickets(self) -> list[Waiting]:
        """All runs in order.

        Raises:
            SaveError: if the queue's folder cannot be used.
        """
        if not self._files.folder.is_dir():
            return []
        with self._files.alone():
            return self._files.in_order()

    def move(self, run: Path, place: int) -> None:
        """Puts a run at a place, counted from 1; who has the device keeps it.

        Raises:
            RunError: if the run is not in this queue.
            SaveError: if the queue's folder cannot be written.
        """
        key = key_of(run.resolve())
        with self._files.alone():
            order = self._files.tickets()
            found = [one for one in order if one.key == key]
            if not found:
                raise RunError(f"{run}: is not in the queue")
            order.remove(found[0])
            order.insert(max(place, 1) - 1, found[0])
            self._files.renumber(order)

    def remove(self, run: Path) -> None:
        """Takes a run out of the queue that no process stands behind.

        Raises:
            RunError: if the run is not in this queue.
            RunHeld: if a process stands behind it, which has to be stopped instead.
            SaveError: if the queue's folder cannot be written.
        """
        key = key_of(run.resolve())
        with self._files.alone():
            if key not in {one.key for one in self._files.tickets()}:
                raise RunError(f"{run}: is not in the queue")
            claim = self._files.claim(key)
            if claim is None:
                raise RunHeld(f'{run}: a process stands in the queue for it. Stop it: lora-foundry tell "{run}" stop')
            claim.release()
            self._files.drop(key)


class Ticket:
    """A run's place in the queue, with this process behind it."""

    def __init__(self, files: QueueFiles, run: Path) -> None:
        self.run = run
        self._files, self._key = files, key_of(run)
        self._claim: BaseFileLock | None = None
        self._device: BaseFileLock | None = None
        with files.alone():
            self._stand()

    def ahead(self) -> list[Waiting]:
        """Whom this run waits for: those before it that are there, and the one that has the device.

        Raises:
            SaveError: if the queue's folder cannot be used.
        """
        with self._files.alone():
            order = self._files.in_order()
        place = next((k for k, one in enumerate(order) if one.run == self.run), len(order))
        return [one for k, one in enumerate(order) if one.run != self.run and (one.running or (one.live and k < place))]

    def try_enter(self) -> bool:
        """Takes the device if it is this run's turn; True while it has it.

        Raises:
            SaveError: if the queue's folder cannot be used.
        """
        if self._device is not None:
            return True
        try:
            with self._files.alone():
                self._stand()
                first = next(one for one in self._files.in_order() if one.live)
                if first.run == self.run:
                    self._device = self._files.enter(self._key)
        except QueueBusy:
            return False
        return self._device is not None

    def yield_device(self) -> None:
        """Gives the device up and steps aside, for a pause. The place is kept; `try_enter` waits there again."""
        self._step_aside(done=False)

    def leave(self) -> None:
        """Gives device and place up. A ticket that cannot be deleted then stays as one without a process."""
        self._step_aside(done=True)

    def _stand(self) -> None:
        """Sees to it that there is a ticket (somebody may have taken it out) and a process behind it."""
        self._files.add(self.run)
        if self._claim is None:
            self._claim = self._files.claim(self._key)
            if self._claim is None:
                raise RunHeld(f"{self.run}: another process stands in the queue for this run")

    def _step_aside(self, done: bool) -> None:
        try:
            with self._files.alone():
                self._release()
                if done:
                    self._files.drop(self._key)
        except SaveError:  # this ends a run, and must not fail it
            self._release()

    def _release(self) -> None:
        for lock in (self._device, self._claim):
            if lock is not None:
                lock.release()
        self._device = self._claim = None


def _queues_folder(root: Path | None) -> Path:
    return (root or state_folder()) / "queue"
