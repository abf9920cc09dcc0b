"""The families there are: built-in ones, those that somebody registers, and those of providers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from ..config import ModelConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    from .base import Base
    from .spec import FamilySpec


class Provider(Protocol):
    """Families that nobody knew of when the core was imported."""

    def names(self) -> Sequence[str]:
        """Those that there are now."""

    def family(self, name: str) -> type[Base] | None:
        """One of them; None if there is no such."""


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
        BaseModelError: if its files are not there.
    """
    return _family(model.family).open(model)


def _family(name: str) -> type[Base]:
    if name in _BUILT_IN and name not in _FAMILIES:
        import_module(f".{_BUILT_IN[name]}", __package__)
    found = _FAMILIES.get(name) or next(filter(None, (one.family(name) for one in _PROVIDERS)), None)
    if found is None:
        near = difflib.get_close_matches(name, family_names(), n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(family_names())}"
        raise ConfigError(f"model.family: no such family: {name!r}; {hint}")
    return found
