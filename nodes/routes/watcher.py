"""Tells all pages what changes of the runs, whichever process changes it. Without a page, nothing is done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...trainer_core.api import RunList, RunNews, run_called
from ...trainer_core.errors import FoundryError

_LOG = logging.getLogger(__name__)
_EVERY, _AT_WORK_EVERY = 1.0, 0.5
"""Seconds between two looks."""
_PATIENCE = 20.0
"""Seconds without a page after which nobody is told anything: a page asks before its socket is there."""

Run = dict[str, Any]


class Watcher:
    """The runs as pages know them, and a thread that looks at them while there is a page."""

    def __init__(
        self,
        runs: Path,
        here: Callable[[], Callable[[str], Run]],
        connected: Callable[[], bool],
        send: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """`here` gives what this server knows of each run by its name, as it is at that moment."""
        self._folder, self._list = runs, RunList(runs)
        self._here, self._connected, self._send = here, connected, send
        self._lock = threading.Lock()
        self._told: dict[str, Run] = {}
        self._revision = 0
        self._news: dict[str, RunNews] = {}
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Reads the runs while the server starts, so that a page which waits for it need not wait for that too."""
        threading.Thread(target=self._list.look, name="lora-foundry runs", daemon=True).start()

    def runs(self) -> dict[str, Any]:
        """All runs, the latest first, as GET runs answers; from now on pages are told what changes."""
        with self._lock:
            self._look()
            self._begin()
            latest = sorted(self._told.values(), key=lambda run: run["updated"], reverse=True)
            return {"revision": self._revision, "runs": latest}

    def run(self, name: str) -> Run | None:
        """One run as it is now."""
        with self._lock:
            self._look()
            return self._told.get(name)

    def _look(self) -> None:
        """Compares with what was told, and tells the difference, and what runs at work have made."""
        here = self._here()
        now = {name: {**vars(summary), **here(name)} for name, summary in self._list.look().items()}
        changed = [run for name, run in now.items() if run != self._told.get(name)]
        gone = [name for name in self._told if name not in now]
        self._told = now
        if changed or gone:
            self._revision += 1
            self._send("runs", {"revision": self._revision, "runs": changed, "gone": gone})
        self._tell_news()  # now: a page that hears of a run at work reads its lines, and is told those that come later

    def _tell_news(self) -> None:
        known, self._news = self._news, {}
        for name in (name for name, run in self._told.items() if run["owner"] is not None):
            try:
                self._news[name] = known.get(name) or RunNews(run_called(name, self._folder))
                if found := self._news[name].look():
                    self._send("run", {"name": name, "step": self._told[name]["step"], **found})
            except (FoundryError, OSError):  # it has just disappeared
                self._news.pop(name, None)

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="lora-foundry pages", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        alone_since = time.monotonic()
        every = _EVERY
        while True:
            time.sleep(every)
            if self._connected():
                alone_since = time.monotonic()
            with self._lock:
                if time.monotonic() - alone_since > _PATIENCE:
                    self._thread, self._news = None, {}
                    return
                try:
                    self._look()
                    every = _AT_WORK_EVERY if self._news else _EVERY
                except Exception:  # noqa: BLE001 - whatever it is, pages are told what comes after it
                    _LOG.exception("LoRA Foundry: the runs could not be looked at")
                    every = _PATIENCE
