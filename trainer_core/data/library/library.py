"""All data sets that a host's pages may see, by ids that it gave out itself: what it did not list cannot be named."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import DatasetConfig, plain_name, validated
from ...errors import ConfigError, NotListed
from ...files import save_error
from ..walk import real
from .checking import Checks
from .drafts import Drafts
from .known import Use, uses
from .listing import CAPTION_SUFFIXES, Listed, folder_id, listed, listed_alone
from .opened import OpenSet

_MOST_OPEN = 8
"""Looks at data sets that are kept: some megabytes for 10,000 pictures."""


@dataclass(frozen=True)
class Places:
    """Where a host's data sets lie."""

    own: Path
    """The folder whose sub-folders are named without it, and below which new ones are made."""
    others: tuple[Path, ...]
    """Further folders that may be data sets, or hold some."""
    demo: Path
    """The one that ships with us."""
    runs: Path
    drafts: Path
    """Where drafts of captions are kept."""
    hidden: frozenset[str] = frozenset()
    """Names directly below `own` that are something else's."""


class Library:
    """Every request asks anew: what lies on the disk is the truth."""

    def __init__(self, places: Callable[[], Places], allowed: Callable[[Path], bool]) -> None:
        """`allowed` says whether a path may be looked at, links resolved."""
        self._places, self._allowed = places, allowed
        self._open: dict[str, OpenSet] = {}
        self._noted: dict[str, Listed] = {}
        """Folders that a walk does not find: new ones that are empty yet, and those that nodes work on."""
        self._sets: dict[str, tuple[Listed, Use | None]] = {}
        self._lock = threading.Lock()
        self.checks = Checks()

    @property
    def drafts(self) -> Drafts:
        """Captions that wait for a review."""
        return Drafts(self._places().drafts)

    def datasets(self) -> list[dict[str, Any]]:
        """All data sets as a page lists them."""
        return [self._shown(one, use) for one, use in self._listed().values()]

    def open(self, identity: object) -> OpenSet:
        """A data set's pictures; looked for again only if a file was added or removed.

        Raises:
            NotListed: if there is no such data set.
            DatasetError: if it cannot be read.
        """
        listed_set, use = self._known(identity)
        config = _config(listed_set, use)
        with self._lock:
            kept = self._open.get(listed_set.id)
            if kept is not None and kept.config == config and kept.fresh:
                return kept
            opened = OpenSet.of(listed_set.id, listed_set.name, config)
            opened.removed = kept.removed if kept else {}
            self._open.pop(listed_set.id, None)
            self._open[listed_set.id] = opened
            while len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]
            return opened

    def folder(self, identity: object) -> str:
        """A data set's folder as a workflow names it.

        Raises:
            NotListed: if there is no such data set.
        """
        return self._named(self._known(identity)[0])

    def note(self, folder: Path) -> None:
        """Lists a folder from now on, wherever it lies that may be looked at."""
        if self._allowed(folder) and (found := listed_alone(folder, folder.name)):
            self._noted[found.id] = found

    def create(self, name: object) -> dict[str, Any]:
        """Makes an empty data set below the host's own folder.

        Raises:
            ConfigError: for a name that is no plain one, or is taken.
            SaveError: if it cannot be made.
        """
        try:
            plain = plain_name(name) if isinstance(name, str) else ""
        except ValueError as error:
            raise ConfigError(f"name: {error}") from None
        places = self._places()
        if not plain or plain in places.hidden or plain == "demo":
            raise ConfigError("name: choose another one")
        folder = places.own / plain
        try:
            folder.mkdir()
        except FileExistsError:
            raise ConfigError(f"name: there is a folder {plain!r} already. Choose another name") from None
        except OSError as error:
            raise save_error(folder, error) from None
        made = Listed(folder, plain, updated=folder.stat().st_mtime)
        self._noted[made.id] = made
        self._sets[made.id] = made, None
        return self._shown(made, None)

    def _known(self, identity: object) -> tuple[Listed, Use | None]:
        if not isinstance(identity, str):
            raise NotListed("a data set is named by its id")
        found = self._sets.get(identity) or self._listed().get(identity)
        if found is None or not self._allowed(found[0].folder) or not found[0].folder.is_dir():
            raise NotListed("there is no such data set (any more)")
        return found

    def _listed(self) -> dict[str, tuple[Listed, Use | None]]:
        places = self._places()
        found = listed(places.own, places.others, self._allowed)
        for one in [*found.values()]:
            if one.folder.parent == places.own and one.folder.name in places.hidden:
                del found[one.id]
        for identity, one in self._noted.items():
            if one.folder.is_dir():
                found.setdefault(identity, one)
        known = uses(places.runs, self._allowed)
        alone = [(use.folder, use.folder.name) for use in known.values()]
        for folder, name in ((places.demo, "demo"), *alone):
            if folder_id(folder) not in found and (more := listed_alone(folder, name)):
                found[more.id] = more
        self._sets = {identity: (one, known.get(real(one.folder))) for identity, one in found.items()}
        return self._sets

    def _shown(self, one: Listed, use: Use | None) -> dict[str, Any]:
        return {
            "id": one.id,
            "name": one.name,
            "folder": self._named(one),
            "pictures": one.pictures,
            "captioned": one.captioned,
            "clips": one.clips,
            "used_by": use.runs if use else [],
            "resolutions": list(use.config.resolutions) if use else [],
            "updated": one.updated,
            "upload": self._upload(one),
        }

    def _named(self, one: Listed) -> str:
        places = self._places()
        if one.folder == places.demo:
            return "demo"
        return one.folder.relative_to(places.own).as_posix() if places.own in one.folder.parents else str(one.folder)

    def _upload(self, one: Listed) -> str | None:
        """Where below the host's own folder its files lie, if they do: what the host's uploads are given."""
        own = self._places().own
        return one.folder.relative_to(own).as_posix() if own in one.folder.parents else None


def _config(one: Listed, use: Use | None) -> DatasetConfig:
    """How a set is read: as the latest run did, or else by its files' and folders' names."""
    if use is not None:
        return use.config
    usual = max(CAPTION_SUFFIXES, key=lambda suffix: one.suffixes.get(suffix, 0))
    return validated(
        DatasetConfig,
        {
            "folder": str(one.folder),
            "caption_extension": usual[1:],
            "kohya_folders": one.kohya,
            "mask_folder": str(one.masks) if one.masks else None,
            "control_folders": [str(folder) for folder in one.controls],
        },
    )
