"""Data prepared for the toy family of videos, which says what it was shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from trainer_core.config import DatasetConfig, JobConfig, ModelConfig
from trainer_core.data.cache import TensorCache
from trainer_core.data.images import to_image
from trainer_core.data.prepare import PreparedData
from trainer_core.families import registry
from trainer_core.families.conditioning import Streams

from ...clips import number_of
from ...toy.video import Provider, ToyVideo


class Watched(ToyVideo):
    """Keeps the numbers that the frames show which it encodes, and their sound."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.shown: list[tuple[int, ...]] = []
        self.heard: list[Tensor] = []

    def encode_pixels(self, pixels: Tensor, sound: Tensor | None = None) -> tuple[Streams, Streams]:
        assert sound is not None
        for clip, one in zip(pixels, sound, strict=True):
            numbers = tuple(number_of(to_image(clip[:, k])) for k in range(clip.shape[1]))
            if not self.shown or numbers != self.shown[-1]:  # a batch is filled up with its last one
                self.shown.append(numbers)
                self.heard.append(one)
        return super().encode_pixels(pixels, sound)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is there for these tests alone."""
    monkeypatch.setattr(registry, "_PROVIDERS", [])
    registry.register_provider(Provider())


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., tuple[PreparedData, Watched]]:
    """Prepares data sets for the toy against one cache; says what was encoded."""

    def make(*datasets: dict[str, Any], **sections: Any) -> tuple[PreparedData, Watched]:
        model = ModelConfig(family="toy_video", device="cpu")
        job = JobConfig(
            name="tiny",
            model=model,
            datasets=tuple(DatasetConfig(**{"resolutions": (64,), "default_caption": "a", **one}) for one in datasets),
            **sections,
        )
        base = Watched.open(model)
        assert isinstance(base, Watched)
        data = PreparedData(job, base, TensorCache(tmp_path / "cache"))
        data.encode_texts([], lambda *_: None)
        data.encode_images(lambda *_: None)
        return data, base

    return make
