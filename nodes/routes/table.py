"""All routes, and their registration. A part of the page adds its own list here."""

from __future__ import annotations

from .. import controls, data_sets, host
from . import actions, captioning, files, going_on, jobs, runs
from .asked import Route
from .datasets import DatasetRoutes
from .guard import handler
from .thumbnails import thumbnail

_DATASETS = DatasetRoutes(data_sets.LIBRARY, thumbnail, data_sets.may_be_shown, data_sets.tell, captioning.CAPTIONERS)
ROUTES = [
    Route("POST", "tell", lambda asked: controls.tell(asked.body)),
    *runs.ROUTES,
    *files.ROUTES,
    *actions.ROUTES,
    *jobs.ROUTES,
    *_DATASETS.routes(),
]


def register() -> None:
    """Has the server answer; to be called once, before it listens."""
    going_on.install()
    runs.WATCHER.prepare()
    for route in ROUTES:
        host.add_route(route.method, f"/lora_foundry/{route.path}", handler(route))
