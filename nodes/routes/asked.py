"""Requests as the functions see them that answer: ids, numbers and fields, checked, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SMALL, LARGE = 4096, 4_000_000
"""Bytes of a request's body: words and numbers; texts of files and captions."""
_LARGEST = 2**53
"""What a page can count to."""


class Refused(Exception):
    """A request that is not done; the message says why, and the status is HTTP's for it."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        """`more` is told beside the message."""
        self.status, self.more = status, more
        super().__init__(message)


@dataclass(frozen=True)
class Asked:
    """A request that was let in. Everything in it is still whatever its sender wrote."""

    parts: Mapping[str, str]
    """What stands in the braces of the route's path, decoded."""
    query: Mapping[str, str]
    body: Any = None
    """JSON of a POST."""
    local: bool = False
    """It comes from a browser on the server's own machine."""

    def number(self, name: str, default: int | None = None, largest: int = _LARGEST) -> int:
        """A whole number from 0 on, of the path or the query.

        Raises:
            Refused: if it is none, or not there and has no default.
        """
        text = self.parts.get(name, self.query.get(name))
        if text is None and default is not None:
            return default
        if text is None or not (text.isascii() and text.isdigit()) or len(text) > 16 or int(text) > largest:
            raise Refused(400, f"{name} must be a whole number from 0 to {largest}")
        return int(text)

    def fields(self, needed: Mapping[str, type], more: Mapping[str, type] | None = None) -> dict[str, Any]:
        """The body's fields by name, each of its type; those of `more` may be left out or null.

        Raises:
            Refused: for anything else.
        """
        more = more or {}
        told = ", ".join(f'"{name}": {kind.__name__}' for name, kind in {**needed, **more}.items())
        if not isinstance(self.body, dict) or not needed.keys() <= self.body.keys() <= needed.keys() | more.keys():
            raise Refused(400, f"send {{{told}}}" if told else "send {}")
        for name, value in self.body.items():
            if type(value) is not {**needed, **more}[name] and not (name in more and value is None):
                raise Refused(400, f"{name} has the wrong type; send {{{told}}}")
        return self.body


Answer = Callable[[Asked], Any]
"""Gives what is sent: anything that JSON knows, a `File` or a `Picture`. Raises `Refused`, or a FoundryError."""


@dataclass(frozen=True)
class Route:
    """One address below /lora_foundry."""

    method: str
    path: str
    answer: Answer
    limit: int = SMALL
    """Bytes of the body."""
