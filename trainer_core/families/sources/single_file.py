"""One part of a model in a single file, and how the parts of a family are gathered from one file or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BaseModelError
from ..names import Naming
from .layout import Layout
from .loading import empty_model, fill
from .recognise import seems_to_be
from .tensors import TensorFile

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...memory.packing import Packing


DENOISERS = {"unet", "transformer"}
WEIGHTS = (".weight", ".bias", ".scale")


@dataclass(frozen=True)
class FilePart:
    """A part of a family that lies in a safetensors file."""

    title: str
    tensors: TensorFile
    prefix: str
    made: dict[str, Any]
    """Its configuration."""
    naming: Naming
    whole: bool
    """Whether all weights under the prefix must be this part's."""

    def config(self) -> dict[str, Any]:
        """Its configuration, from the shapes and from what the family always has."""
        return dict(self.made)

    def load(self, kind: type, dtype: torch.dtype, device: torch.device, packing: Packing | None = None) -> nn.Module:
        """It as a model of a class, read tensor by tensor.

        Raises:
            BaseModelError: if weights are missing or of another shape, or if a denoiser's file holds more than the
                model has.
        """
        model = empty_model(kind, self.made)
        if self.whole:
            self._refuse_more(model)
        return fill(model, [self.tensors], self.prefix, self.naming, dtype, device, packing)

    def _refuse_more(self, model: nn.Module) -> None:
        """A model that is larger than what we build of it is another one, such as a UNet with motion modules."""
        known = {self.prefix + self.naming(name).name for name in model.state_dict()}
        kept = {name for name in self.tensors.shapes if name.startswith(self.prefix) and name.endswith(WEIGHTS)}
        if more := sorted(kept - known):
            raise BaseModelError(
                f"{self.tensors.path}: holds {len(more)} weights that no {self.title} has, such as {more[0]}: it is a "
                "model of another kind"
            )

    def check(self) -> None:
        """Nothing: what a file holds was looked at when it was opened."""

    def digest(self, sampled: bool = False) -> str:
        """Changes with the part's content; not with its name and place, nor with the file's other parts.

        `sampled` as in `Source`.
        """
        names = [name for name in self.tensors.shapes if name.startswith(self.prefix)]
        found = self.tensors.sampled_digest(names) if sampled else self.tensors.digest(names)
        return f"{found}:{json.dumps(self.made, sort_keys=True)}"

    def file(self) -> Path:
        """The file."""
        return self.tensors.path


def open_file(
    layout: Layout | None, path: Path, given: Mapping[str, Path]
) -> tuple[dict[str, FilePart], dict[str, Any]]:
    """All parts of a family, from a checkpoint or diffusion model and from the files given beside it, and the
    configuration of its scheduler.

    Raises:
        BaseModelError: if the file is something else, or a part is in none of the files.
    """
    if layout is None:
        raise BaseModelError(f"model.source: {path}: this family is read from folders in diffusers layout only")
    file = open_tensors("model.source", path)
    parts = separate_parts(layout, given)
    missing: list[str] = []
    for name, part_layout in layout.parts.items():
        found = find_part(layout, name, file)
        if found is not None:
            parts.setdefault(name, found)
        elif name in DENOISERS:
            raise BaseModelError(
                f"model.source: {path}: is no {layout.title} model; it seems to be {seems_to_be(file.shapes)}"
            )
        elif name not in parts:
            missing.append(f"model.files.{name} ({part_layout.title})")
    if missing:
        raise BaseModelError(
            f"model.source: {path}: holds not all of {layout.title}. Name a file for {' and '.join(missing)}"
        )
    try:
        return parts, layout.schedule(layout.config("scheduler"), file.shapes, file.metadata)
    except BaseModelError as error:
        raise BaseModelError(f"model.source: {path}: {error}") from None


def separate_parts(layout: Layout | None, given: Mapping[str, Path]) -> dict[str, FilePart]:
    """Parts from files of their own.

    Args:
        given: part → file.

    Raises:
        BaseModelError: if the family has no such part, or a file is something else.
    """
    parts: dict[str, FilePart] = {}
    for name, path in given.items():
        if layout is None:
            raise BaseModelError(f"model.files.{name}: this family is read from folders in diffusers layout only")
        if name not in layout.parts:
            raise BaseModelError(f"model.files.{name}: {layout.title} has no such part. Leave it empty")
        if path.is_dir():
            raise BaseModelError(f"model.files.{name}: {path}: is a folder. Name the .safetensors file in it")
        if not path.is_file():
            raise BaseModelError(f"model.files.{name}: {path}: there is no such file")
        file = open_tensors(f"model.files.{name}", path)
        found = find_part(layout, name, file)
        if found is None:
            raise BaseModelError(
                f"model.files.{name}: {path}: is no {layout.parts[name].title} of {layout.title}; it seems to be "
                f"{seems_to_be(file.shapes)}"
            )
        parts[name] = found
    return parts


def open_tensors(field: str, path: Path) -> TensorFile:
    try:
        return TensorFile(path)
    except BaseModelError as error:
        raise BaseModelError(f"{field}: {error}") from None


def find_part(layout: Layout, name: str, file: TensorFile) -> FilePart | None:
    """A part in a file, wherever it begins; None if it is not there."""
    base, part = layout.config(name), layout.parts[name]
    for prefix in part.prefixes:
        shapes = {key.removeprefix(prefix): shape for key, shape in file.shapes.items() if key.startswith(prefix)}
        try:
            found = part.describe(base, shapes)
        except (KeyError, IndexError, ZeroDivisionError):  # like such a part, but cut short or quantized
            found = None
        if found is not None:
            return FilePart(part.title, file, prefix, *found, whole=name in DENOISERS)
    return None
