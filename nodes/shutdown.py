"""When ComfyUI ends while it trains: the run saves and stops first. Nothing here is of ComfyUI.

ComfyUI runs prompts in a daemon thread, which the end of the process cuts off wherever it is. How a process ends:

- Ctrl-C, and `exit` (ComfyUI-Manager under comfy-cli): the interpreter shuts down; its hook waits for the training.
- SIGTERM, SIGHUP, SIGBREAK: nothing would run any more. The first one stops the training and is sent again when that
  has saved; then it does what it would have done without us.
- `os.execv` (ComfyUI-Manager's restart): the process becomes another one; Python's audit event comes before.
- on Windows, a console that is closed or a user who logs off: the system asks, and waits a few seconds for the answer.

Whoever asks a second time leaves at once, with what the last checkpoint holds.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - its hook must be older than ours: the latest runs first
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..trainer_core.api import TrainingJob

_SIGNALS = ("SIGTERM", "SIGHUP", "SIGBREAK")
_CLOSE, _LOGOFF, _SHUTDOWN = 2, 5, 6  # of Windows' console
_POLL_SECONDS = 0.2
"""On Windows a wait without end cannot be interrupted by Ctrl-C."""


class Ending(Exception):
    """The process is about to end: nothing new begins."""


class Shutdown:
    """Holds the end of the process up while something trains."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())  # a signal may come while its own thread holds it
        self._at_work: list[TrainingJob] = []
        self._signal: int | None = None
        """What ends the process when nothing is at work any more."""
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._console_handler: Any = None
        self.ending = False
        """Whether the process ends as soon as nothing trains."""

    def install(self) -> None:
        """Takes the process's ends in hand; to be called once, in the main thread, or signals stay as they are."""
        # the public hook comes too late: thread pools, which prepare the data, take no more work by then
        getattr(threading, "_register_atexit", atexit.register)(self._at_exit)
        sys.addaudithook(self._on_audit)
        self._listen_to_console()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (int(getattr(signal, name)) for name in _SIGNALS if hasattr(signal, name)):
            # what is ignored stays so (nohup), and what another language handles (None) we could not pass on
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._on_signal)

    @contextmanager
    def held_up_by(self, training: TrainingJob) -> Iterator[None]:
        """The process does not end inside of this; if it is to, the training is asked to stop.

        Raises:
            Ending: if it is about to end already.
        """
        with self._changed:
            if self.ending:
                raise Ending
            self._at_work.append(training)
        try:
            yield
        finally:
            with self._changed:
                self._at_work.remove(training)
                self._changed.notify_all()
                number = None if self._at_work else self._signal
            if number is not None:
                _send_to_main_thread(number)

    def _stop(self, number: int | None = None) -> bool:
        """Asks what is at work to stop, before the signal `number` ends the process; whether that is news to it."""
        with self._changed:
            news, self.ending = not self.ending and bool(self._at_work), True
            for training in self._at_work if news else ():
                training.stop(keep_place=True)
                self._signal = number
            return news

    def _wait(self) -> None:
        self._stop()
        try:
            with self._changed:
                while self._at_work:
                    self._changed.wait(_POLL_SECONDS)
        except KeyboardInterrupt:
            os._exit(128 + signal.SIGINT)  # any other way out would run into the thread that trains

    def _at_exit(self) -> None:
        if os.getpid() == self._process:
            self._wait()

    def _on_audit(self, event: str, _arguments: object) -> None:
        if event == "os.exec" and os.getpid() == self._process:  # a fork has none of our threads
            self._wait()
            self.ending = False  # it may fail, and then the process stays

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, between any two of its instructions: it must not wait for another thread."""
        if os.getpid() == self._process and self._stop(number):
            return
        self._signal, self.ending = None, False
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _listen_to_console(self) -> None:
        """Windows ends a process whose console was closed without any signal."""
        if os.name != "nt":
            return
        import ctypes
        from ctypes import wintypes

        def asked(kind: int) -> bool:
            if kind in (_CLOSE, _LOGOFF, _SHUTDOWN):
                self._wait()  # in a thread of the system's own, which ends the process when it has its answer
            return False

        windows: Any = ctypes  # has these names on Windows alone
        self._console_handler = windows.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)(asked)  # must live as long as it
        windows.windll.kernel32.SetConsoleCtrlHandler(self._console_handler, True)


SHUTDOWN = Shutdown()
"""This process's."""


def _send_to_main_thread(number: int) -> None:
    """Wakes the main thread with a signal, whatever it waits for."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)
