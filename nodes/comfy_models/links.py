"""A base that is made of a graph's links, as what goes over our own link."""

from __future__ import annotations

from typing import Any

from pydantic import PrivateAttr

from ...trainer_core.config import LINKS, ModelConfig, validated
from ...trainer_core.units import size
from .base import ComfyBase
from .layers import described
from .loading import Linked, recall, remember
from .spec import FAMILY


class LinkedModel(ModelConfig):
    """A `ModelConfig` that keeps the objects alive that its source stands for."""

    _linked: Linked = PrivateAttr()

    @property
    def objects(self) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE, as they came."""
        return self._linked.models[0], self._linked.clip, self._linked.vae


def linked_model(
    models: tuple[Any, ...], clip: Any, vae: Any, settings: dict[str, Any], audio_vae: Any = None
) -> tuple[LinkedModel, str]:
    """The base that links make, and lines that say what it is.

    Args:
        models: MODELs; with two experts the one for high noise first.
        settings: further fields of `ModelConfig`.

    Raises:
        BaseModelError: if it cannot be trained, with the reason.
    """
    linked = Linked(models, clip, vae, audio_vae)
    base = validated(LinkedModel, {**settings, "family": FAMILY, "source": remember(linked)})
    base._linked = linked  # noqa: SLF001 - our own class
    opened = ComfyBase.open(base)
    opened.check_parts()
    sizes = described(models[0].model.diffusion_model, opened.spec.targets["attention_mlp"])
    dtype = str(models[0].model_dtype()).removeprefix("torch.")
    text = f"{opened.spec.title} (family {FAMILY}), {size(models[0].model_size())}, {dtype}"
    adapts = f"a LoRA of attention and feed-forward adapts\n{sizes}"
    return base, "\n".join([text, adapts, *opened.precision_told()])


def linked_again(model: ModelConfig) -> ModelConfig:
    """The base of an earlier run: one that links made keeps their objects alive again; any other is as it was.

    Raises:
        BaseModelError: if the links are not there any more.
    """
    if not model.source.startswith(LINKS):
        return model
    base = validated(LinkedModel, model.model_dump())
    base._linked = recall(model.source)  # noqa: SLF001 - our own class
    return base
