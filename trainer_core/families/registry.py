"""The families there are. A host may register one of its own."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..errors import BaseModelError, ConfigError
from .sources.source import EMBEDDED, open_source

if TYPE_CHECKING:
    from .base import Base, FamilySpec
    from .sources.layout import Layout

_FAMILIES: dict[str, type[Base]] = {}
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


def family_names() -> list[str]:
    """All families, built-in ones first."""
    return [*_BUILT_IN, *(name for name in _FAMILIES if name not in _BUILT_IN)]


def family_spec(name: str) -> FamilySpec:
    """A family as data; loads no weights.

    Raises:
        ConfigError: if there is no such family; the message names the nearest.
    """
    return _family(name).spec


def family_layout(name: str) -> Layout | None:
    """How a family's parts lie in single files; None if it is read from folders only.

    Raises:
        ConfigError: if there is no such family.
    """
    return _family(name).layout


def open_base(model: ModelConfig) -> Base:
    """Opens a model: finds its files, and loads nothing yet.

    Raises:
        ConfigError: for an unknown family or device.
        BaseModelError: if its files are not there.
    """
    family = _family(model.family)
    files = {"text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2, "vae": model.vae}
    source = open_source(model.source, family.spec.default_repo, family.layout, files, model.tokenizers)
    part = family.spec.denoiser_part
    if part not in source.parts and not (source.folder / part).is_dir():
        what = "the embedded base" if source.folder == EMBEDDED else f"{source.folder}"
        raise BaseModelError(
            f"model.source: {what} is no {family.spec.title} model (it has no `{part}`). Name a checkpoint file, a "
            f"folder or a repository of that family, such as {family.spec.default_repo}, or another model.family"
        )
    return family(source, model)


def _family(name: str) -> type[Base]:
    if name not in _FAMILIES:
        if name not in _BUILT_IN:
            near = difflib.get_close_matches(name, family_names(), n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(family_names())}"
            raise ConfigError(f"model.family: no such family: {name!r}; {hint}")
        import_module(f".{_BUILT_IN[name]}", __package__)
    return _FAMILIES[name]
