"""What a user asks of a running job: stop, pause, go on, save now, draw previews now.

Requests come from this process (the methods of `TrainingJob`) or from any other as an empty file in the run's folder
`requests`, which works on every system and from every program. The job looks between two steps, and while it waits.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from pathlib import Path

from ..errors import Interrupted, RunError
from ..files import save_error

STOP, PAUSE, CONTINUE, SAVE, SAMPLE = "stop", "pause", "continue", "save", "sample"
REQUESTS = (STOP, PAUSE, CONTINUE, SAVE, SAMPLE)
_FOLDER = "requests"
_OPPOSITES = {PAUSE: CONTINUE, CONTINUE: PAUSE}


def ask(run: Path, request: str) -> None:
    """Leaves a request for whichever process works on a run.

    Raises:
        RunError: for a word that is none of `REQUESTS`.
        SaveError: if the run's folder cannot be written.
    """
    if request not in REQUESTS:
        raise RunError(f"{request!r} cannot be asked of a run; there are: {', '.join(REQUESTS)}")
    folder = run / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{uuid.uuid4().hex[:8]}.tmp"
        temporary.touch()
        temporary.replace(folder / request)  # the place of an equal one that was not taken yet
    except OSError as error:
        raise save_error(folder / request, error) from error


class Requests:
    """The requests that a job has not yet done; any thread may ask."""

    def __init__(self, run: Path) -> None:
        self._folder = run / _FOLDER
        self._asked: set[str] = set()
        self._lock = threading.RLock()  # a signal's handler may ask while its own thread looks

    def ask(self, request: str) -> None:
        """Leaves a request; a pause and a continuation cancel each other."""
        with self._lock:
            self._asked.discard(_OPPOSITES.get(request, ""))
            self._asked.add(request)

    def asked(self, request: str) -> bool:
        """Whether it is asked for; looks for files of other processes as well. It stays asked until it is `taken`."""
        self._read_files()
        with self._lock:
            return request in self._asked

    def take(self, request: str) -> bool:
        """Whether it is asked for; if so, it counts as done."""
        self._read_files()
        with self._lock:
            there = request in self._asked
            self._asked.discard(request)
            return there

    def forget_files(self) -> None:
        """Drops what was asked of an earlier process and never done: nobody means it any more."""
        for path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()

    @property
    def any(self) -> bool:
        """Whether there are some."""
        self._read_files()
        with self._lock:
            return bool(self._asked)

    @property
    def interrupts(self) -> bool:
        """Whether work that is no training step (encoding, previews) should end early."""
        self._read_files()
        with self._lock:
            return STOP in self._asked or PAUSE in self._asked

    def check(self) -> None:
        """For such work to call on its way.

        Raises:
            Interrupted: if it should end early.
        """
        if self.interrupts:
            raise Interrupted

    def _read_files(self) -> None:
        for path in self._files():
            try:
                path.unlink()
            except OSError:  # taken by another thread, or not deletable: then it must not be done again and again
                continue
            self.ask(path.name)

    def _files(self) -> list[Path]:
        """What other processes asked, in that order."""
        try:
            found = [path for path in self._folder.iterdir() if path.name in REQUESTS]
            return sorted(found, key=lambda path: path.stat().st_mtime_ns)
        except OSError:  # no such folder, as nearly always
            return []
