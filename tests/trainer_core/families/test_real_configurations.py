"""One whole training step of the real models without weights: on the meta device there are only shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import ModelMixin
from torch import nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig, DatasetConfig, JobConfig, ModelConfig, TrainConfig
from trainer_core.data.encoded import Latents
from trainer_core.data.prepare import PreparedData
from trainer_core.data.scan import Item, Sample
from trainer_core.data.variants import Variant
from trainer_core.families import registry
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN, Conditioning, Streams, TextEmbedding
from trainer_core.families.sources.layout import Layout
from trainer_core.families.sources.source import Source
from trainer_core.training.batch_source import BatchSource
from trainer_core.training.experts import stages_of
from trainer_core.training.optimizers import make_optimizer
from trainer_core.training.step import Objective

REAL = {"flux1": 11_901_408_320, "sd15": 859_520_964, "sdxl": 2_567_463_684}
"""Family → parameters of the published denoiser (FLUX.1-dev, SD 1.5, SDXL base)."""


@dataclass(frozen=True)
class Described:
    """A source that knows what the real model's parts are like, and has no weights."""

    layout: Layout
    name: str = "described"
    folder: Path = Path()

    @property
    def profile(self) -> dict[str, Any]:
        return {}

    def config(self, part: str) -> dict[str, Any]:
        return self.layout.config(part)

    def load(self, part: str, kind: Any, dtype: torch.dtype, device: torch.device, _packing: None) -> nn.Module:
        with torch.device("meta"):
            if issubclass(kind, ModelMixin):
                model = kind.from_config(self.config(part))
            else:
                model = kind(kind.config_class.from_dict(self.config(part)))
        return model.to(dtype).eval().requires_grad_(False)

    def tokenizer(self, part: str) -> Any:
        limit = 512 if (self.layout.name, part) == ("flux1", "tokenizer_2") else 77

        class Tokenizer:
            model_max_length = limit

            def __call__(self, prompts: list[str], max_length: int, **_: Any) -> Any:
                return SimpleNamespace(input_ids=torch.zeros(len(prompts), max_length, dtype=torch.long))

        return Tokenizer()


class OnePicture:
    """What a batch source asks of prepared data: a picture of the family's own size, and any text."""

    def __init__(self, base: Base) -> None:
        self.base, own = base, base.sampling
        item = Item(Path("x.png"), "x.png", own.width, own.height, ("a zorble",))
        self.samples = [[Sample(0, item, (own.width, own.height))]]

    def latents(self, *_: Any) -> Latents:
        own = self.base.sampling
        shapes = self.base.latent_shapes(own.width, own.height)
        mean, std = ({name: fill(shape) for name, shape in shapes.items()} for fill in (torch.zeros, torch.ones))
        return Latents(mean, std, (own.height, own.width, 0, 0, own.height, own.width))

    def texts_of(self, _sample: Sample) -> list[str]:
        return ["a zorble"]

    def conditioning(self, _sample: Sample, _variant: Variant, latents: Latents, *texts: str) -> list[Conditioning]:
        return [Conditioning(text, self._embedding(text), time_ids=latents.time_ids) for text in texts]

    def _embedding(self, text: str) -> TextEmbedding | None:
        if self.base.spec.lora.text_encoders:  # which the job then trains
            return None
        with torch.no_grad():
            return {name: values[0] for name, values in self.base.embed([text]).items()}


@pytest.fixture(params=REAL)
def base(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    # autocast knows no meta device; adapted layers give their base layer's precision without it too
    monkeypatch.setattr("trainer_core.training.step.autocast", lambda *_: nullcontext())
    family = registry._family(request.param)
    assert family.layout is not None
    model = ModelConfig(
        family=request.param, device="meta", dtype="bfloat16", text_encoder_dtype="bfloat16", vae_dtype="bfloat16"
    )
    base = family(cast(Source, Described(family.layout)), model)
    base.load_text_encoders()
    return base


def job_of(base: Base) -> JobConfig:
    """All that a family can adapt at once: every layer, convolutions, text encoders."""
    spec = base.spec
    return JobConfig(
        name="real",
        model=base.config,
        adapter=AdapterConfig(
            targets="all",
            rank=8,
            conv_rank=4 if spec.conv_targets else None,
            text_encoders=bool(spec.lora.text_encoders),
        ),
        datasets=(DatasetConfig(folder=".", trigger="zorble"),),
        train=TrainConfig(steps=1, min_snr_gamma=5.0, noise_offset=0.1),
    )


def test_a_whole_training_step(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(base)
    denoiser = base.load_denoiser().train()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == REAL[base.spec.name]
    adapter = Adapter.of(job, base, denoiser)
    optimizer = make_optimizer(adapter.parameters(), job.train, adapter.text_parameters())
    objective = Objective(job, base, denoiser, adapter)
    data = OnePicture(base)
    source = BatchSource(job, base, cast(PreparedData, data), objective.timesteps, stages_of(job, base.spec))
    batch = source.micro_batch(data.samples[0] * 2, 0, {})
    own = base.sampling

    predicted: list[Streams] = []
    predict = base.predict
    monkeypatch.setattr(
        base, "predict", lambda *args, **given: predicted.append(predict(*args, **given)) or predicted[-1]
    )
    (term,) = objective.terms(batch, 0)
    assert (term.minimised.shape, term.minimised.dtype) == ((2,), torch.float32)
    main = base.spec.main
    expected = (2, main.channels, own.height // main.factor, own.width // main.factor)
    shown = [(name, one.shape, one.dtype, one.device.type) for streams in predicted for name, one in streams.items()]
    assert shown == [(MAIN, expected, torch.float32, "meta")] * 2  # the first one sees what layers share
    term.minimised.sum().backward()
    without = [
        name
        for name, parameter in adapter._named().items()
        if parameter.grad is None or parameter.grad.dtype != torch.float32
    ]
    # SDXL reads CLIP-L's last layer but one, so its last has nothing to learn
    assert all(name.startswith("text_encoder.") and ".layers.11." in name for name in without)
    assert bool(without) == (base.spec.name == "sdxl")
    assert not any(p.requires_grad for name, p in denoiser.named_parameters() if "base_layer" in name)
    optimizer.step()


def test_the_real_vae_encodes_and_decodes(base: Base) -> None:
    base.load_vae()
    vae, own, main = base._vae, base.sampling, base.spec.main  # type: ignore[attr-defined]
    latents = vae.encode(torch.zeros(1, 3, own.height, own.width, dtype=base.vae_dtype, device="meta")).latent_dist.mean
    assert latents.shape == (1, main.channels, own.height // main.factor, own.width // main.factor)
    assert vae.decode(latents).sample.shape == (1, 3, own.height, own.width)
