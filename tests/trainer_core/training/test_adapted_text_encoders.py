"""Text encoders with a LoRA in them: whatever is a target, a measurement or a picture is made without dropout.

Their layers are in training mode whatever the denoiser is in, so only the place of dropout switches it off there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from trainer_core.families.registry import open_base
from trainer_core.families.texts import stack_text
from trainer_core.training.step import BLANK, MAIN

from ..predicting import predicted
from .updates import terms_of

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer

Made = Callable[..., "Trainer"]
Record = Callable[["Trainer"], list]
Pair = Callable[..., "list[Trainer]"]


@pytest.fixture(params=[False, True], ids=["denoiser", "text encoders too"])
def made_pair(request: pytest.FixtureRequest, made: Made, small_folder: Callable[..., Path]) -> Pair:
    """Makes two trainers whose LoRA does the same: the first with dropout, the second without.

    The first has run terms of a set already, which left its strength, 0.25, and a place of dropout behind.
    """
    model = {"family": "sd15", "source": str(small_folder("sd15"))}

    def make(
        regularization: dict[str, Any] | None = None,
        aside: tuple[dict[str, Any], ...] = (),
        strength: float = 0.25,
        **sections: Any,
    ) -> list[Trainer]:
        trainers = []
        for dropout, own in ((0.5, strength), (0.0, 1.0)):
            trainers.append(
                made(
                    regularization,
                    model=model,
                    adapter={"text_encoders": request.param, "dropout": dropout},
                    datasets=[{"adapter_strength": own}, *aside],
                    **sections,
                )
            )
        list(terms_of(trainers[0], trainers[0].data.samples[0], 3))
        return trainers

    return make


def test_previews(made_pair: Pair) -> None:
    """Byte for byte those of the trainer without dropout, at strength 1: they show what the file does in ComfyUI."""
    sample = {"prompts": ("a [trigger]",), "steps": 2, "width": 64, "height": 64}
    pictures = []
    for trainer in made_pair(sample=sample):
        trainer.draw_samples()
        (path,) = trainer.run.sample_paths(0)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]


def test_validation(made_pair: Pair, others: Path) -> None:
    held = {"folder": str(others), "role": "validation", "trigger": None}
    trainers = made_pair(aside=(held,), validation={"every": 1, "draws": 1})
    measured = []
    for trainer in trainers:
        trainer.validate()
        (line,) = trainer.run.metrics()
        measured.append(line["validation_loss"])
    assert measured[0] == measured[1]


def test_the_promptless_target(made_pair: Pair, record: Record) -> None:
    """Of contrastive guidance: with the adapter, without dropout; the pass that learns has it."""
    calls = []
    for trainer in made_pair({"contrastive_guidance": True}, strength=1.0):
        seen = record(trainer)
        next(terms_of(trainer, trainer.data.samples[0]))
        calls.append(seen)
    (blank, prompted), (plain_blank, plain_prompted) = calls
    assert blank.adapted
    assert torch.equal(blank.text, plain_blank.text)
    assert torch.equal(blank.predicted, plain_blank.predicted)
    assert not torch.equal(prompted.predicted, plain_prompted.predicted)


def test_what_is_preserved_is_the_base_alone(made_pair: Pair, record: Record) -> None:
    """Without the adapter in the denoiser and in the text encoders: against a base that never had one."""
    trainer, _ = made_pair({"blank_preservation": True})
    calls = record(trainer)
    found = [term.name for term in terms_of(trainer, trainer.data.samples[0])]
    assert found == [MAIN, BLANK]
    _, prior, kept = calls
    base = open_base(trainer.job.model)
    base.load_text_encoders()
    text = base.encode_prompts([""])[0]
    with torch.no_grad():
        plain = predicted(base, base.load_denoiser(), prior.noisy, prior.t, stack_text([text] * 4, base.device))
    assert not prior.adapted
    torch.testing.assert_close(prior.predicted, plain, rtol=1e-5, atol=1e-5)
    assert (kept.predicted - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize("ratio", [0.1, 2.0])
def test_the_learning_rate_of_text_encoders(ratio: float, made: Made, small_folder: Callable[..., Path]) -> None:
    """Gradient descent: at a tenth of the rate, weights move a tenth as far; the denoiser's as far as before."""
    model = {"family": "sd15", "source": str(small_folder("sd15"))}
    plain = {"optimizer": "SGD", "weight_decay": 0.0, "lr_scheduler": "linear", "warmup_steps": 2}
    moved: list[tuple[Tensor, Tensor]] = []
    for factor in (1.0, ratio):
        train = {**plain, "learning_rate": 0.5, "text_encoder_lr": 0.5 * factor}
        trainer = made(model=model, adapter={"text_encoders": True}, train=train)
        of_text = {id(parameter) for parameter in trainer.experts.active.adapter.text_parameters()}
        before = [parameter.detach().clone() for parameter in trainer.experts.active.adapter.parameters()]
        trainer.update()
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for old, new in zip(before, trainer.experts.active.adapter.parameters(), strict=True):
            parts[id(new) in of_text].append((new.detach() - old).flatten())
        moved.append((torch.cat(parts[0]), torch.cat(parts[1])))
    (denoiser, text), (same, scaled) = moved
    assert text.norm() > 1e-4
    torch.testing.assert_close(same, denoiser, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scaled, ratio * text, rtol=1e-2, atol=1e-6)
