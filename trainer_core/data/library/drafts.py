"""Drafts of captions, which somebody reviews before they become captions.

They lie in a folder of ours and not in the data set: they are no training data, and a data set may be shared, under
version control, or on a disk that cannot be written. One JSON file for each set.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...reading import TEXT_LIMIT, read_json
from ..text import is_text
from .editing import LONGEST

_lock = threading.Lock()
"""Nodes and requests write on threads of their own."""


class Drafts:
    """The drafts of all data sets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, identity: str) -> dict[str, dict[str, str]]:
        """A set's drafts by the picture's key: `caption`, and `by` whom or what. A damaged file counts as none."""
        try:
            read = read_json(self._file(identity), TEXT_LIMIT)
        except (OSError, ValueError):
            return {}
        drafts = read.items() if isinstance(read, dict) else ()
        return {key: one for key, one in drafts if _is_draft(one)}

    def add(self, identity: str, captions: Mapping[str, str], by: str) -> None:
        """Keeps drafts, each over an earlier one for the same picture; empty ones are left out.

        Raises:
            SaveError: if they cannot be written.
        """
        new = {
            key: {"caption": text.strip()[:LONGEST], "by": by[:200]}
            for key, text in captions.items()
            if text.strip() and is_text(text) and is_text(by)
        }
        with _lock:
            self._write(identity, self.of(identity) | new)

    def drop(self, identity: str, keys: Collection[str]) -> None:
        """Forgets drafts that were accepted or rejected.

        Raises:
            SaveError: if that cannot be written.
        """
        with _lock:
            self._write(identity, {key: one for key, one in self.of(identity).items() if key not in keys})

    def _write(self, identity: str, drafts: Mapping[str, Any]) -> None:
        write_atomically(self._file(identity), json.dumps(drafts, ensure_ascii=False).encode())

    def _file(self, identity: str) -> Path:
        return self._folder / f"{identity}.json"


def _is_draft(one: Any) -> bool:
    return isinstance(one, dict) and all(isinstance(one.get(name), str) for name in ("caption", "by"))
