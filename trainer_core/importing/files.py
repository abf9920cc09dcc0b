"""What else belongs to a configuration: files that it names, and how many pictures its data sets hold."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from ..config import DatasetConfig, validated
from ..config.yaml_text import LIMIT
from ..errors import FoundryError
from ..reading import is_file, read_regular

Text = tuple[str, Mapping[str, Any]]
"""A file's name and settings."""


class Files:
    """The texts that were handed in, and nothing else: no file is read."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)
        """By name."""
        self.used: set[str] = set()
        """Names of the texts that others have named."""

    def text(self, path: str, limit: int = LIMIT) -> tuple[str, str] | None:  # noqa: ARG002
        """Name and text of a file that a configuration names; None if it was not handed in.

        Args:
            limit: bytes that it may have where it is read from the disk.
        """
        wanted = _last(path)
        name = next((one for one in self.texts if _last(one) == wanted), None)
        if name is None:
            return None
        self.used.add(name)
        return name, self.texts[name]

    def names(self, folder: str) -> list[str]:  # noqa: ARG002
        """Names of the files in a data set's folder, as far as they are known."""
        return []

    def drawn(self, datasets: Any) -> float | None:  # noqa: ARG002
        """How many pictures an epoch draws from data sets, as a job has them; None if that is not known."""
        return None


class FilesOnDisk(Files):
    """The same, and files beside a configuration."""

    def __init__(self, texts: Mapping[str, str], folder: Path) -> None:
        super().__init__(texts)
        self.folder = folder

    def text(self, path: str, limit: int = LIMIT) -> tuple[str, str] | None:
        if handed := super().text(path):
            return handed
        try:
            # tools take it from the folder that they run in, which is rarely the one of the file
            file = next(one for one in (self.folder / path, self.folder / _last(path)) if is_file(one))
            return file.name, read_regular(file, limit).decode("utf-8-sig")
        except (StopIteration, OSError, ValueError):
            return None

    def names(self, folder: str) -> list[str]:
        from ..data.clips.header import MEDIA_SUFFIXES

        with suppress(OSError, ValueError):
            return [one.name for one in (self.folder / folder).iterdir() if one.suffix.lower() in MEDIA_SUFFIXES]
        return []

    def drawn(self, datasets: Any) -> float | None:
        from ..data.folder import expanded
        from ..data.index import index

        total = 0.0
        try:
            for one in datasets or ():
                dataset = validated(DatasetConfig, one)
                if dataset.role == "train":
                    found = index(dataset.but(folder=str(self.folder / expanded(dataset.folder)), mask_folder=None))
                    keys = [*found.images, *found.found.clips]
                    total += dataset.weight * sum(found.repeats(key) for key in keys)
        except FoundryError:
            return None
        return total or None


def _last(path: str) -> str:
    """The last part of a path of any system."""
    return PureWindowsPath(path).name.lower()
