"""Which of some families a source is of: by a folder's or repository's configurations, by a single file's keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..reading import is_file, is_folder
from .sources.diffusers_folder import read_object
from .sources.hub import INDEX, configurations
from .sources.recognise import seems_to_be
from .sources.single_file import find_part, open_tensors
from .sources.source import check_folder, find_source

if TYPE_CHECKING:
    from .base import Base


def detect(name: str, families: Sequence[type[Base]], download: bool = True) -> tuple[type[Base] | None, str]:
    """The first of the families that a source is of, and what else the source is, in words.

    Args:
        name: as in `model.source`. Of a repository, only what describes it is read.
        download: ask Hugging Face for a repository that is not on this machine.

    Raises:
        BaseModelError: if it is not there or cannot be read.
    """
    found = find_source(name, "owner/name")
    if isinstance(found, str):
        if own := next((family for family in families if family.spec.default_repo == found), None):
            return own, found
        found = configurations(found, [family.spec.denoiser_part for family in families], download)
    return _of_folder(found, families) if is_folder(found) else _of_file(found, families)


def _of_folder(folder: Path, families: Sequence[type[Base]]) -> tuple[type[Base] | None, str]:
    check_folder(folder)
    pipeline = str(read_object(folder / INDEX).get("_class_name", ""))
    for family in families:
        config = folder / family.spec.denoiser_part / "config.json"
        if is_file(config) and family.fits(read_object(config), pipeline):
            return family, pipeline
    parts = dict.fromkeys(family.spec.denoiser_part for family in families)
    without = "" if any((folder / part).is_dir() for part in parts) else f" without a folder {' or '.join(parts)}"
    return None, f"a {pipeline or 'model in diffusers layout'}{without}"


def _of_file(path: Path, families: Sequence[type[Base]]) -> tuple[type[Base] | None, str]:
    file = open_tensors("model.source", path)
    told = f"{path.name} {file.metadata.get('modelspec.architecture')}"
    for family in families:
        part = find_part(family.layout, family.spec.denoiser_part, file) if family.layout else None
        if part is not None and family.fits(part.config(), told):
            return family, told
    return None, seems_to_be(file.shapes)
