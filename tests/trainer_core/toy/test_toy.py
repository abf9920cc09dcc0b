"""A family of another shape than all real ones trains, is interrupted at any point and resumes bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer_core.api import choose_checkpoint
from trainer_core.config import JobConfig
from trainer_core.errors import ConfigError
from trainer_core.families import registry
from trainer_core.families.conditioning import MAIN, Conditioning
from trainer_core.safetensors_file import read_tensors
from trainer_core.training.experts import stages_of

from .family import AUDIO, Provider, Toy
from .runs import interrupted_it_ends_in_the_same_bytes, run_of

STEPS = 6
Jobs = Callable[..., JobConfig]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is there for these tests alone."""
    monkeypatch.setattr(registry, "_PROVIDERS", [])
    registry.register_provider(Provider())


@pytest.fixture
def controls(pictures: Path, tmp_path: Path) -> Path:
    """A control image for each picture, in a folder of its own."""
    folder = tmp_path / "controls"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for path in sorted(pictures.glob("*.png")):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / path.name)
    return folder


@pytest.fixture
def job(job_of: Jobs, controls: Path) -> JobConfig:
    made = job_of(
        model={"family": "toy", "device": "cpu"},
        adapter={"rank": 2, "dropout": 0.2, "targets": "all"},
        dataset={"control_folders": [str(controls)], "flip_x": True, "caption_dropout": 0.3},
        train={"steps": STEPS, "batch_size": 2, "gradient_accumulation": 2, "ema_decay": 0.9},
        sample={"prompts": ["a [trigger]", "one red house on a long green field"], "every": 2, "steps": 3},
        save={"keep": 9, "every": 2},
    )
    preservation = {"output_preservation": True, "output_preservation_class": "thing", "blank_preservation": True}
    return made.but(regularization=preservation, validation={"every": 2, "share": 0.25})


def test_it_is_offered_like_any_other() -> None:
    assert "toy" in registry.family_names()
    assert registry.family_spec("toy").title == "Toy"


def test_trains_both_experts_in_turn(job: JobConfig, tmp_path: Path) -> None:
    training = run_of(job, tmp_path / "runs")
    assert training.run_here(lambda _: None) == "finished"
    losses = [line["loss"] for line in training.run.metrics() if "loss" in line]
    assert len(losses) == STEPS
    assert all(np.isfinite(losses))
    assert [line["stage"] for line in training.run.metrics() if "loss" in line] == [0, 1] * (STEPS // 2)
    before, after = (training.run.checkpoints()[k] for k in (-2, -1))
    assert sorted(path.name for path in after.path.glob("lora*")) == [
        "lora_high_noise.safetensors",
        "lora_low_noise.safetensors",
    ]
    for name in ("high_noise", "low_noise"):
        lora = read_tensors(after.path / f"lora_{name}.safetensors")
        assert any(value.any() for key, value in lora.items() if "lora_B" in key), f"{name} has learned something"
        assert before.step < after.step


def test_which_stages_are_trained(job: JobConfig) -> None:
    assert stages_of(job.but(train={"stages": "high_noise"}), Toy.spec).stage(5) == 0
    with pytest.raises(ConfigError, match="only one stage"):
        stages_of(job.but(train={"stages": "high_noise"}), registry.family_spec("flux1"))
    low = {"timestep_max": Toy.spec.experts[0].low}
    with pytest.raises(ConfigError, match="leave no times to the stage"):
        stages_of(job.but(train=low), Toy.spec)
    assert stages_of(job.but(train={**low, "stages": "low_noise"}), Toy.spec).stage(5) == 1


def test_an_update_changes_one_expert_alone(job: JobConfig, trainer_of: Callable[..., Any]) -> None:
    trainer = trainer_of(job)
    states = [[one.adapter.state_dict() for one in trainer.experts]]
    for _ in range(4):
        trainer.update()
        trainer.progress.step += 1
        states.append([one.adapter.state_dict() for one in trainer.experts])
    for number, (old, new) in enumerate(pairwise(states)):
        for place in (0, 1):
            same = all(torch.equal(value, new[place][name]) for name, value in old[place].items())
            assert same == (place != number % 2)
    counts = [one.updater.ema.count for one in trainer.experts if one.updater.ema is not None]
    assert counts == [2, 2]


@pytest.mark.parametrize("at", range(1, STEPS))
def test_interrupted_anywhere_it_ends_in_the_same_bytes(at: int, job: JobConfig, tmp_path: Path) -> None:
    interrupted_it_ends_in_the_same_bytes(job, at, tmp_path)


def test_a_batch_gives_what_each_sample_gives_alone() -> None:
    """Texts of one, three and nine tokens, padded in the batch."""
    from trainer_core.config import ModelConfig

    base = Toy.open(ModelConfig(family="toy", device="cpu"))
    source = torch.Generator().manual_seed(0)
    noisy = {
        MAIN: torch.randn(3, 4, 8, 8, generator=source),
        AUDIO: torch.randn(3, 2, 8, generator=source),
    }
    t = torch.tensor([0.2, 0.5, 0.9])
    texts = base.encode_prompts(["red", "a red house", "a b c d e f g h i"])
    samples = [Conditioning("", text, (torch.randn(4, 8, 8, generator=source),)) for text in texts]
    denoiser = base.load_denoiser("low_noise")
    together = base.predict(denoiser, noisy, t, base.collate(samples))
    for k in range(3):
        own = {name: value[k : k + 1] for name, value in noisy.items()}
        alone = base.predict(denoiser, own, t[k : k + 1], base.collate(samples[k : k + 1]))
        for name in noisy:
            torch.testing.assert_close(together[name][k : k + 1], alone[name], rtol=1e-5, atol=1e-6)


def test_the_control_image_is_part_of_what_a_text_means(
    job: JobConfig, controls: Path, trainer_of: Callable[..., Any], tmp_path: Path
) -> None:
    """With another control image the same caption is embedded anew: its picture is in the cache's key."""
    first = trainer_of(job).batches.get(0)[0]
    for path in controls.glob("*.png"):
        Image.new("RGB", (64, 64), "white").save(path)
    second = trainer_of(job, tmp_path / "others").batches.get(0)[0]
    for one, other in zip(first.captioned, second.captioned, strict=True):
        assert one.prompt == other.prompt
        assert not torch.equal(one.text["tokens"], other.text["tokens"])


def test_every_stream_counts_with_its_weight(job: JobConfig, trainer_of: Callable[..., Any]) -> None:
    """loss = mean of the main stream's squared error + half of the sound's, by hand."""
    trainer = trainer_of(job.but(adapter={**job.adapter.model_dump(), "dropout": 0.0}))
    batch = trainer.batches.get(0)[0]
    objective = trainer.experts.active.objective
    term = next(objective.terms(batch, 0))
    noisy = {k: (1 - _like(batch.t, x)) * x + _like(batch.t, x) * batch.noise[k] for k, x in batch.clean.items()}
    predicted = objective.predict(noisy, batch.t, batch.captioned)
    errors = {k: (predicted[k] - (batch.noise[k] - x)).square().flatten(1).mean(1) for k, x in batch.clean.items()}
    torch.testing.assert_close(term.shown, (errors[MAIN] + 0.5 * errors[AUDIO]).detach())


def _like(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return t.view(-1, *[1] * (x.dim() - 1))


def test_its_checkpoints_are_measured_as_the_run_measured_them(job: JobConfig, controls: Path, tmp_path: Path) -> None:
    """Both experts' LoRAs with averaged weights, control images, and texts that depend on them."""
    shown = job.sample.but(controls=[[str(controls / "red.png")]], before_training=True)
    training = run_of(job.but(sample=shown), tmp_path)
    assert training.run_here(lambda _: None) == "finished"
    run = training.run
    logged = choose_checkpoint(run, pictures=1, embedding="statistics")
    assert logged.drawn == 0
    shutil.rmtree(run.path / "samples")
    for name in ("metrics.jsonl", "choice.json"):
        (run.path / name).unlink()
    found = choose_checkpoint(run, pictures=1, embedding="statistics")
    assert (found.drawn, [one.step for one in found.checkpoints]) == (8, [2, 4, 6])
    for one, other in zip((found.base, *found.checkpoints), (logged.base, *logged.checkpoints), strict=True):
        assert one.held_out == pytest.approx(other.held_out, rel=1e-5)
        assert (one.leak, one.likeness) == pytest.approx((other.leak, other.likeness), rel=0.01)
    assert len({one.held_out for one in found.checkpoints}) == 3
