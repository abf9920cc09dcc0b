"""Data prepared for an encoder whose latents say where in the picture they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer_core.config import DatasetConfig, JobConfig, ModelConfig
from trainer_core.data.cache import TensorCache
from trainer_core.data.prepare import PreparedData
from trainer_core.families.conditioning import MAIN, Stream, Streams

CELL = 8


class PixelMeans:
    """Stands for a base: a picture's latents are the means of its pixels over cells of 8x8, red, green and blue."""

    main = Stream(MAIN, channels=3, factor=CELL)
    spec = SimpleNamespace(
        name="means",
        title="Means",
        main=main,
        streams=(main,),
        bucket_divisor=16,
        max_controls=3,
        text_sees_controls=False,
        own_controls=False,
        frame_rate=None,
        sample_rate=None,
        first_frame=False,
        first_frame_chosen=False,
        first_frame_kept=False,
        learns_silence=False,
    )
    vae_dtype = torch.float32

    def __init__(self, mark: str = "", own_controls: bool = False) -> None:
        self.mark, self.images, self.loads = mark, 0, 0
        self.spec = SimpleNamespace(**{**vars(type(self).spec), "own_controls": own_controls})
        self.controls: list[tuple[object, ...]] = []
        self.batches: list[tuple[int, ...]] = []
        self.texts: list[str] = []

    def encode_pixels(self, pixels: Tensor) -> tuple[Streams, Streams]:
        self.batches.append(tuple(pixels.shape))
        means = torch.nn.functional.avg_pool2d(pixels, CELL)
        return {MAIN: means}, {MAIN: torch.full_like(means, 0.5)}

    def encode_controls(self, pictures: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Each picture's means over 8x8 cells of its own."""
        self.controls.append((size, *((one.shape[2], one.shape[1]) for one in pictures)))
        return tuple(torch.nn.functional.adaptive_avg_pool2d(one, 8) for one in pictures)

    def encode_prompts(self, prompts: list[str], _: object = ()) -> list[dict[str, Tensor]]:
        self.texts += dict.fromkeys(prompts)  # a batch is filled up with its last one
        return [{"text": torch.tensor([float(len(prompt))])} for prompt in prompts]

    def load_vae(self) -> None:
        self.loads += 1

    def free_vae(self) -> None:
        pass

    def load_text_encoders(self) -> None:
        pass

    def free_text_encoders(self) -> None:
        pass

    def pixel_fingerprint(self) -> str:
        return f"vae {self.mark}"

    def text_fingerprint(self) -> str:
        return f"text {self.mark}"


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., tuple[PreparedData, PixelMeans]]:
    """Prepares data sets for `PixelMeans` against one cache; says what was encoded."""

    def make(
        *datasets: dict[str, Any], mark: str = "", own_controls: bool = False, **sections: Any
    ) -> tuple[PreparedData, PixelMeans]:
        job = JobConfig(
            name="tiny",
            model=ModelConfig(device="cpu"),
            datasets=tuple(DatasetConfig(**{"resolutions": (64,), "default_caption": "a", **one}) for one in datasets),
            **sections,
        )
        base = PixelMeans(mark, own_controls)
        data = PreparedData(job, base, TensorCache(tmp_path / "cache"))  # type: ignore[arg-type]
        data.encode_texts([], lambda *_: None)
        data.encode_images(lambda *_: None)
        return data, base

    return make
