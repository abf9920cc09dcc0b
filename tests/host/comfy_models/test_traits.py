"""What we say of a model against what the zoo knows of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ..pack import module
from .zoo import MODELS, NONE

pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor", "ignore:__array_wrap__ must accept")


def _traits() -> Any:
    return module("nodes.comfy_models.traits")


@pytest.mark.parametrize("name", MODELS)
def test_who_is_refused_and_why(name: str) -> None:
    found = MODELS[name].found()
    model = SimpleNamespace(model_config=found, latent_format=found.latent_format)
    assert _traits().refusal(model) == MODELS[name].refused


@pytest.mark.parametrize("kind", NONE)
def test_what_makes_no_pictures_is_refused(kind: str) -> None:
    import comfy.supported_models

    kind_of_model = getattr(comfy.supported_models, kind)
    found = kind_of_model(dict(kind_of_model.unet_config))
    model = SimpleNamespace(model_config=found, latent_format=found.latent_format)
    assert _traits().refusal(model) == NONE[kind]


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.refused])
def test_whose_samples_mix(name: str) -> None:
    found = MODELS[name].found()
    assert _traits().mixes_samples(SimpleNamespace(model_config=found)) is bool(MODELS[name].alone)
