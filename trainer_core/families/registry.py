"""The families there are: built-in ones, those that somebody registers, and those of providers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..config import JobConfig, ModelConfig
from ..errors import BaseModelError, ConfigError, FoundryError
from ..reading import is_file
from .detection import detect
from .sources.source import find_source

if TYPE_CHECKING:
    from .base import Base
    from .spec import FamilySpec


class Provider(Protocol):
    """Families that nobody knew of when the core was imported."""

    def names(self) -> Sequence[str]:
        """Those that there are now."""

    def family(self, name: str) -> type[Base] | None:
        """One of them; None if there is no such."""

    def claims(self, model: ModelConfig) -> str | None:
        """The name of the family that it offers for a model whose family is to be found; None if it offers none."""


_FAMILIES: dict[str, type[Base]] = {}
_PROVIDERS: list[Provider] = []
_BUILT_IN = {
    "flux1": "flux1.model",
    "flux1_kontext": "flux1.kontext",
    "sd15": "stable_diffusion.sd15",
    "sdxl": "stable_diffusion.sdxl",
}
"""Family name → module in this folder, imported when it is first asked for."""


def register_family(family: type[Base]) -> None:
    """Adds a family, or replaces the one of the same name."""
    _FAMILIES[family.spec.name] = family


def register_provider(provider: Provider) -> None:
    """Adds families that are found when they are asked for, such as the models that a host has loaded."""
    _PROVIDERS.append(provider)


def family_names() -> list[str]:
    """All families, built-in ones first."""
    return [*dict.fromkeys((*_BUILT_IN, *_FAMILIES, *(name for one in _PROVIDERS for name in one.names())))]


def family_spec(name: str) -> FamilySpec:
    """A family as data; loads no weights.

    Raises:
        ConfigError: if there is no such family; the message names the nearest.
    """
    return _family(name).spec


def spec_of(model: ModelConfig, download: bool = True) -> FamilySpec:
    """The spec of a model's family.

    Args:
        download: ask Hugging Face which family a repository is of that is not on this machine.

    Raises:
        ConfigError: if there is no such family.
        BaseModelError: if the family is to be found, and its source is not there or of none.
    """
    model = with_family(model, download)
    return _family(model.family).spec_of(model)


def with_family(model: ModelConfig, download: bool = True) -> ModelConfig:
    """The model with its family by name: if that is `auto`, the built-in one that the source is of, or else the one
    that a provider offers.

    Args:
        download: as in `spec_of`.

    Raises:
        BaseModelError: if the source is not there, or of no family.
    """
    if model.family != "auto":
        return model
    try:
        own = [_family(name) for name in dict.fromkeys((*_BUILT_IN, *_FAMILIES))]
        found, what = detect(model.source, own, download)
        problem = BaseModelError(
            f"model.source: {model.source}: seems to be {what}, and fits none of the families: "
            f"{', '.join(family_names())}. Name its family in model.family to hear why{_more()}"
        )
    except BaseModelError as error:
        found, problem = None, error
    name = found.spec.name if found else next(filter(None, (one.claims(model) for one in _PROVIDERS)), None)
    if name is None:
        raise problem
    return model.model_copy(update={"family": name})


def can_find(model: ModelConfig) -> bool:
    """Whether a model's family and all its files are there, without what a host might add."""
    try:
        spec_of(model)
        find_source(model.source, "")
    except FoundryError:
        return False
    return all(is_file(Path(file)) for file in model.files.values())


def job_with_family(job: JobConfig) -> JobConfig:
    """The job with its model's family by name, as it stands in a run's job.yaml.

    Raises:
        BaseModelError: as `with_family`.
    """
    return job.model_copy(update={"model": with_family(job.model)})


def file_parts() -> dict[str, str]:
    """Name → role of the parts of all families that may lie in files of their own beside the source."""
    parts = [
        part for name in family_names() for part in family_spec(name).parts if part.role != "denoiser" or part.optional
    ]
    return {part.name: part.role for part in sorted(parts, key=lambda one: (one.role, one.name))}


def open_base(model: ModelConfig) -> Base:
    """Opens a model: finds its files, and loads nothing yet.

    Raises:
        ConfigError: for an unknown family or device.
        BaseModelError: if its files are not there, or its family is to be found and is none.
    """
    model = with_family(model)
    return _family(model.family).open(model)


def _family(name: str) -> type[Base]:
    if name in _BUILT_IN and name not in _FAMILIES:
        import_module(f".{_BUILT_IN[name]}", __package__)
    found = _FAMILIES.get(name) or next(filter(None, (one.family(name) for one in _PROVIDERS)), None)
    if found is None:
        near = difflib.get_close_matches(name, family_names(), n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(family_names())}{_more()}"
        raise ConfigError(f"model.family: no such family: {name!r}; {hint}")
    return found


def _more() -> str:
    return "" if _PROVIDERS else ". With ComfyUI (--comfyui DIR), every model that it loads can be trained"
