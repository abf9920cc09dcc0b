"""What DDPM families add to training: both predictions, min-SNR, noise offset, SDXL's sizes; with small models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor

from trainer_core.config import JobConfig
from trainer_core.data.variants import Variant, choose_variant
from trainer_core.randomness import normal_like
from trainer_core.training.validation import validation_loss

from ..families.small_models import SCHEDULER
from .conftest import DDPM_KINDS as KINDS
from .conftest import apart
from .updates import drawn, terms_of

if TYPE_CHECKING:
    from trainer_core.families.conditioning import Collated, Streams
    from trainer_core.training.loop import Trainer

Made = Callable[..., "Trainer"]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Two pictures that are cropped in a bucket of 64x64."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "wide"
    folder.mkdir()
    for name, size in (("one", (90, 64)), ("two", (70, 100))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a lamp", encoding="utf-8")
    return folder


@pytest.fixture
def made(
    small_folder: Callable[..., Path], job_of: Callable[..., JobConfig], trainer_of: Made, wide: Path, tmp_path: Path
) -> Made:
    def make(
        family: str = "sd15", kind: str = "epsilon", dataset: dict[str, Any] | None = None, **sections: Any
    ) -> Trainer:
        model = {"family": family, "source": str(small_folder(family, kind))}
        settings = {"folder": str(wide), "trigger": None, **(dataset or {})}
        return trainer_of(job_of(family, model=model, dataset=settings, **sections), tmp_path / "runs")

    return make


def predicted(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All that the base is asked from now on, and what it says."""
    calls: list[dict[str, Any]] = []
    apart(trainer)
    predict = trainer.base.predict

    def record(denoiser: Any, noisy: Streams, t: Tensor, given: Collated) -> Streams:
        answer = predict(denoiser, noisy, t, given)
        calls.append({"noisy": noisy["main"], "t": t, "answer": answer["main"].detach(), "time_ids": given.time_ids})
        return answer

    monkeypatch.setattr(trainer.base, "predict", record)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_is_that_of_diffusers_training_scripts(
    kind: str, gamma: float | None, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, target, min-SNR weight, from diffusers' scheduler and its train_text_to_image script."""
    trainer = made(kind=kind, train={"min_snr_gamma": gamma, "batch_size": 2})
    batch, calls = trainer.data.samples[0], predicted(trainer, monkeypatch)
    (term,) = terms_of(trainer, batch)
    draws = drawn(trainer, batch)
    theirs = DDPMScheduler.from_config({**SCHEDULER, **KINDS[kind]})
    steps = (draws.t.double() * 1000).floor().long()
    clean, noise = draws.clean["main"], draws.noise["main"]
    torch.testing.assert_close(calls[0]["noisy"], theirs.add_noise(clean, noise, steps), rtol=1e-4, atol=1e-5)
    target = noise if kind == "epsilon" else theirs.get_velocity(clean, noise, steps)
    losses = torch.nn.functional.mse_loss(calls[0]["answer"], target, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(term.shown, losses, rtol=1e-4, atol=1e-5)
    if gamma is not None:
        snr = compute_snr(theirs, steps)
        weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        losses = losses * (weights / snr if kind == "epsilon" else weights / (snr + 1))
    torch.testing.assert_close(term.minimised.detach(), losses, rtol=1e-4, atol=1e-5)


def test_pure_noise_is_trained_with_zero_terminal_snr(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the last step x is the noise itself, the target minus the picture."""
    trainer = made(kind="v, zero snr", train={"timestep_type": "one_step"})
    batch, calls = trainer.data.samples[0][:1], predicted(trainer, monkeypatch)
    (term,) = terms_of(trainer, batch)
    draws = drawn(trainer, batch)
    torch.testing.assert_close(calls[0]["noisy"], draws.noise["main"])
    expected = (calls[0]["answer"] + draws.clean["main"]).square().mean((1, 2, 3))
    torch.testing.assert_close(term.shown, expected, rtol=1e-5, atol=1e-6)
    term.minimised.sum().backward()
    assert any(one.grad is not None and one.grad.any() for one in trainer.experts.active.adapter.parameters())


def test_noise_offset_moves_each_channel_of_each_sample(made: Made) -> None:
    plain, moved = (made(train={"noise_offset": offset}) for offset in (0.0, 0.5))
    batch = plain.data.samples[0]
    before, after = (drawn(trainer, batch, 3).noise["main"] for trainer in (plain, moved))
    difference = after - before
    assert difference.shape == (2, 4, 8, 8)
    channels = difference.mean((2, 3))
    torch.testing.assert_close(difference, channels[:, :, None, None].expand_as(difference), rtol=0, atol=1e-6)
    assert len(channels.flatten().unique()) == 8
    again = drawn(moved, batch, 3).noise["main"]
    assert torch.equal(again, after)
    assert not torch.equal(drawn(moved, batch, 4).noise["main"] - drawn(plain, batch, 4).noise["main"], difference)
    # over many draws: normal, of the offset's deviation (standard error of 800 draws: 0.013)
    many = torch.cat(
        [
            (drawn(moved, batch, k).noise["main"] - drawn(plain, batch, k).noise["main"]).mean((2, 3)).flatten()
            for k in range(100)
        ]
    )
    assert many.std().item() == pytest.approx(0.5, abs=0.05)
    assert abs(many.mean().item()) < 0.06


def test_sdxl_is_told_the_sizes_of_what_was_drawn(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training those of the drawn part and its mirroring, in validation those of the centre; one for each sample."""
    trainer = made(
        "sdxl",
        dataset={"crop": "random", "flip_x": True},
        train={"batch_size": 2},
        regularization={"blank_preservation": True},
    )
    batch, calls = trainer.data.samples[0], predicted(trainer, monkeypatch)
    list(terms_of(trainer, batch, 5))
    assert len(calls) == 3, "the adapted model, and the base and the adapted one for the blank prompt"
    dataset, seed = trainer.job.datasets[0], trainer.job.train.seed
    for call in calls:
        for sample, told in zip(batch, call["time_ids"].tolist(), strict=True):
            variant = choose_variant(dataset, seed, 5, sample.key, 1)
            assert tuple(told) == trainer.data.latents(sample, variant).time_ids
            assert told[:2] == [sample.item.height, sample.item.width]
            assert told[4:] == [64, 64]

    trainer = made("sdxl", validation={"share": 0.5, "every": 1, "draws": 1})
    calls = predicted(trainer, monkeypatch)
    validation_loss(trainer.experts, trainer.data, 1, 1, lambda: None)
    (sample,) = trainer.data.validation
    # 90x64 and 70x100 in 64x64: (90 - 64) / 2 across, (100 - 70) / 2 · 64 / 70 down
    expected = {(64, 90): [64, 90, 0, 13, 64, 64], (100, 70): [100, 70, 14, 0, 64, 64]}
    assert calls[0]["time_ids"].tolist() == [expected[sample.item.height, sample.item.width]]
    assert trainer.data.latents(sample, Variant()).time_ids[0] == sample.item.height


def test_what_sdxl_is_told_changes_what_it_learns(made: Made) -> None:
    """The sizes reach the UNet: another original size, another loss."""
    trainer = made("sdxl")
    batch = trainer.data.samples[0]
    draws = drawn(trainer, batch)
    noisy = {"main": trainer.base.schedule.add_noise(draws.clean["main"], draws.noise["main"], draws.t)}
    others = [replace(one, time_ids=(64, 64, 0, 0, 64, 64)) for one in draws.captioned]
    objective = trainer.experts.active.objective
    with torch.no_grad():
        told, whole = (objective.predict(noisy, draws.t, prompts)["main"] for prompts in (draws.captioned, others))
    assert (told - whole).abs().amax((1, 2, 3)).min() > 1e-4


def test_posterior_and_noise_are_drawn_alike_in_all_families(made: Made) -> None:
    """The draws are functions of their place: no family has its own."""
    trainer = made()
    (sample, *_), seed = trainer.data.samples[0], trainer.job.train.seed
    draws = drawn(trainer, [sample], 2)
    place = (seed, 2, sample.key, 1)
    assert torch.equal(draws.noise["main"][0], normal_like((4, 8, 8), "noise", *place))
    latents = trainer.data.latents(sample, Variant())
    assert torch.equal(
        draws.clean["main"][0], latents.mean["main"] + latents.std["main"] * normal_like((4, 8, 8), "posterior", *place)
    )
