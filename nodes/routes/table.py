"""All routes, and their registration. A part of the page adds its own list here."""

from __future__ import annotations

from .. import controls, host
from . import files, runs
from .asked import Route
from .guard import handler

ROUTES = [
    Route("POST", "tell", lambda asked: controls.tell(asked.body)),
    *runs.ROUTES,
    *files.ROUTES,
]


def register() -> None:
    """Has the server answer; to be called once, before it listens."""
    for route in ROUTES:
        host.add_route(route.method, f"/lora_foundry/{route.path}", handler(route))
