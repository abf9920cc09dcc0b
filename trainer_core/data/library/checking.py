"""Checks of data sets in the background: they read every pixel, which takes minutes for 10,000 pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ...errors import FoundryError, Interrupted
from ..lint import lint
from .opened import OpenSet, item_id

_MOST_ITEMS = 500
"""Pictures that are named with a finding."""
_TOLD = 0.5
"""Seconds between two messages of how far a check is."""
Told = Callable[[dict[str, Any]], None]


class Checks:
    """The latest check of each data set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, dict[str, Any]] = {}
        self._ended = False

    def of(self, identity: str) -> dict[str, Any]:
        """`checking`, and once there was one: `findings`, [{check, severity, message, items}], and `checked` (when)."""
        with self._lock:
            return dict(self._of.get(identity, {"checking": False, "findings": None}))

    def start(self, opened: OpenSet, tell: Told) -> None:
        """Checks a data set on a thread of its own, unless that is being done.

        Args:
            tell: hears {"id", "done", "of"} now and then, and {"id", "checked"} at the end.
        """
        with self._lock:
            before = self._of.get(opened.id, {"findings": None})
            if before.get("checking"):
                return
            self._of[opened.id] = {**before, "checking": True}
        threading.Thread(target=self._check, args=(opened, tell), name="data set check", daemon=True).start()

    def end(self) -> None:
        """Ends all checks soon."""
        self._ended = True

    def _check(self, opened: OpenSet, tell: Told) -> None:
        told = [time.monotonic()]

        def progress(_what: str, done: int, of: int) -> None:
            if self._ended:
                raise Interrupted
            if time.monotonic() - told[0] > _TOLD:
                told[0] = time.monotonic()
                tell({"id": opened.id, "done": done, "of": of})

        findings: list[dict[str, Any]] | None = None
        error = None
        try:
            report = lint(opened.config, tokenizers=(), progress=progress)
            findings = [
                {
                    "check": one.check,
                    "severity": one.severity,
                    "message": one.message,
                    "items": [item for file in one.files[:_MOST_ITEMS] if (item := item_id(file)) in opened.keys],
                }
                for one in report.findings
            ]
        except FoundryError as failed:
            error = str(failed)
        except Interrupted:
            error = "ended"
        finally:
            with self._lock:
                self._of[opened.id] = {"checking": False, "findings": findings, "error": error, "checked": time.time()}
        tell({"id": opened.id, "checked": True})
