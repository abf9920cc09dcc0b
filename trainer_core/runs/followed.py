"""The run of another process, as those see it that only help it to compute: they read it, and write nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import JobConfig
from .requests import Requests
from .run_folder import RunFolder


class FollowedRun(RunFolder):
    """A run whose owner writes it."""

    def write_job(self, job: JobConfig) -> None:
        """Nothing."""

    def write_status(self, state: str, step: int, steps: int, error: str | None = None) -> None:
        """Nothing."""

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Nothing."""

    def truncate_metrics(self, step: int) -> None:
        """Nothing."""

    def repair(self) -> list[str]:
        """Nothing."""
        return []


class NoRequests(Requests):
    """Its owner hears the user."""

    def __init__(self) -> None:
        super().__init__(Path())

    def _files(self) -> list[Path]:
        return []
