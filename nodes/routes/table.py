"""All routes, and their registration. A part of the page adds its own list here."""

from __future__ import annotations

from .. import controls, host
from .asked import Route
from .datasets import DatasetRoutes
from .guard import handler

_DATASETS = DatasetRoutes(
    host.LIBRARY, host.thumbnails_folder, host.may_be_shown, lambda news: host.send_to_pages("dataset", news)
)
ROUTES = [
    Route("POST", "tell", lambda asked: controls.tell(asked.body)),
    *_DATASETS.routes(),
]


def register() -> None:
    """Has the server answer; to be called once, before it listens."""
    for route in ROUTES:
        host.add_route(route.method, f"/lora_foundry/{route.path}", handler(route))
