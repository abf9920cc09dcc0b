"""Fixtures of the training's tests: trainers that share one cache, denoisers that record what they are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer_core.config import JobConfig
from trainer_core.families.conditioning import MAIN

from ..families.small_models import SMALL

if TYPE_CHECKING:
    from torch import Tensor

    from trainer_core.families.conditioning import Collated, Streams
    from trainer_core.training.loop import Trainer


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder whose cache fills up over the tests."""
    return tmp_path_factory.mktemp("shared_runs")


@pytest.fixture(scope="session")
def half_triggered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures; two captions hold the trigger `zorble`, one only as a part of a word."""
    captions = {"one": "a red zorble", "two": "zorble on grass", "three": "a house", "four": "zorbleland"}
    return drawn(tmp_path_factory.mktemp("half_triggered"), captions, seed=11)


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures that are in no other set."""
    return drawn(tmp_path_factory.mktemp("others"), {"five": "a lamp, tall, green", "six": "a door, old, blue"}, seed=5)


def drawn(folder: Path, captions: dict[str, str], seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name, caption in captions.items():
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


DDPM_KINDS: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "v": {"prediction_type": "v_prediction"},
    "v, zero snr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}
"""Schedulers of small models: settings that differ from SD 1.5's."""


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives a small model of a family by its name, and one of `DDPM_KINDS`."""
    root, found = tmp_path_factory.mktemp("models"), {}

    def of(family: str, kind: str = "epsilon") -> Path:
        if (family, kind) not in found:
            found[family, kind] = SMALL[family](root / f"{family} {kind}", **DDPM_KINDS[kind])
        return found[family, kind]

    return of


@pytest.fixture
def made(
    job_of: Callable[..., JobConfig], trainer_of: Callable[..., Trainer], shared_root: Path
) -> Callable[..., Trainer]:
    """Makes a trainer from sections; `stirred`: with a B that is not zero, so that the adapter does something."""

    def make(
        regularization: dict[str, Any] | None = None,
        validation: dict[str, Any] | None = None,
        stirred: bool = True,
        **sections: Any,
    ) -> Trainer:
        job = job_of(**sections).but(regularization=regularization or {}, validation=validation or {})
        trainer = trainer_of(job, shared_root)
        if stirred:
            stir(trainer)
        return trainer

    return make


def stir(trainer: Trainer) -> None:
    """B becomes small noise."""
    state = trainer.experts.active.adapter.state_dict()
    source = torch.Generator().manual_seed(1)
    for name in sorted(state):
        if "lora_B" in name:
            state[name] = 0.1 * torch.randn(state[name].shape, generator=source)
    trainer.experts.active.adapter.load_state_dict(state)


@dataclass
class Call:
    """One pass through the denoiser."""

    noisy: Tensor
    t: Tensor
    text: Tensor
    guidance: Any
    controls: tuple
    graph: bool
    adapted: bool
    strength: float
    predicted: Tensor


def apart(trainer: Trainer) -> None:
    """Has layers work each for itself, so that no pass is needed to see which of them read the same tensor."""
    for expert in trainer.experts:
        with expert.adapter.finding_siblings():
            pass


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], list[Call]]:
    """Lists a trainer's passes through the denoiser from now on."""

    def start(trainer: Trainer) -> list[Call]:
        calls: list[Call] = []
        apart(trainer)
        original = trainer.base.predict
        layer = next(iter(trainer.experts.active.adapter.layers.values()))

        def predict(denoiser: Any, noisy: Streams, t: Tensor, given: Collated) -> Streams:
            predicted = original(denoiser, noisy, t, given)
            calls.append(
                Call(
                    noisy[MAIN],
                    t,
                    given.text["text"],
                    given.guidance,
                    given.controls,
                    graph=torch.is_grad_enabled(),
                    adapted=layer.enabled,
                    strength=layer.strength,
                    predicted=predicted[MAIN].detach(),
                )
            )
            return predicted

        monkeypatch.setattr(trainer.base, "predict", predict)
        return calls

    return start
