"""The loss on held-out pictures: what it is, what it does not depend on, and that training does not feel it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainer_core.adapters import fused
from trainer_core.config import JobConfig
from trainer_core.data.variants import Variant
from trainer_core.errors import Interrupted
from trainer_core.families.texts import stack_text
from trainer_core.job import TrainingJob
from trainer_core.randomness import normal_like
from trainer_core.runs.events import Event, StepDone, ValidationDone
from trainer_core.training.validation import validation_loss, validation_times

from ..predicting import predicted
from .updates import terms_of

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer

Made = Callable[..., "Trainer"]
Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]
CHECKED: dict[str, Any] = {"every": 1, "draws": 3}


def held(others: Path, **settings: Any) -> list[dict[str, Any]]:
    """A training set, and a set to validate on."""
    return [{}, {"folder": str(others), "role": "validation", "trigger": None, **settings}]


def measured(trainer: Trainer, batch_size: int = 2) -> float:
    with trainer.experts.evaluating("raw"):
        return validation_loss(trainer.experts, trainer.data, 3, batch_size, lambda: None)


def test_times_are_spread_evenly() -> None:
    assert validation_times(1) == [0.5]
    assert validation_times(4) == [0.125, 0.375, 0.625, 0.875]


def test_by_hand(made: Made, others: Path) -> None:
    """The mean over two pictures and three times of what the denoiser is off the velocity, one pass for each."""
    trainer = made(validation=CHECKED, datasets=held(others))
    assert [sample.item.key for sample in trainer.data.validation] == ["five.png", "six.png"]
    assert trainer.data.samples[1] == []
    errors = []
    trainer.experts.active.denoiser.eval()
    for sample in trainer.data.validation:
        x = trainer.data.latents(sample, Variant()).mean["main"]
        text = stack_text([trainer.data.text(sample.item.captions[0])], trainer.base.device)
        for k, t in enumerate((1 / 6, 1 / 2, 5 / 6)):
            noise = normal_like(x.shape, "validation", sample.item.key, k)
            noisy = ((1 - t) * x + t * noise)[None]
            with torch.no_grad():
                v = predicted(trainer.base, trainer.experts.active.denoiser, noisy, torch.tensor([t]), text)
            errors.append((v[0] - (noise - x)).square().mean().item())
    trainer.experts.active.denoiser.train()
    assert measured(trainer) == pytest.approx(sum(errors) / 6, rel=1e-5)
    assert len(set(errors)) == 6


def test_it_depends_on_the_weights_alone(made: Made, others: Path) -> None:
    """Not on the seed, nor on how training draws, weighs, guides, drops, batches or how strong its sets are."""
    expected = measured(made(validation=CHECKED, datasets=held(others)))
    weights = made(validation=CHECKED, datasets=held(others)).experts.active.adapter.state_dict()
    odd = made(
        {"differential_guidance": True, "blank_preservation": True, "contrastive_guidance": True},
        CHECKED,
        datasets=[{"adapter_strength": 0.25, "loss_weight": 7}, held(others, loss_weight=3)[1]],
        adapter={"dropout": 0.9},
        train={
            "seed": 7,
            "timestep_type": "weighted",
            "timestep_bias": "high_noise",
            "timestep_min": 0.3,
            "stage_boundaries": (0.6,),
            "loss_type": "mae",
            "min_snr_gamma": 1.0,
        },
    )
    odd.experts.active.adapter.load_state_dict(weights)
    list(terms_of(odd, odd.data.samples[0], 3))  # leaves a strength and a place of dropout behind
    for batch_size in (1, 4, 64):
        assert measured(odd, batch_size) == pytest.approx(expected, rel=1e-5)


def test_it_sees_pictures_and_captions_as_they_are(made: Made, others: Path) -> None:
    """Neither flips, crops, dropped captions nor shuffled tags of a validation set are drawn."""
    changed = {"flip_x": True, "flip_y": True, "crop": "random", "caption_dropout": 0.9}
    plain = made(validation=CHECKED, datasets=held(others))
    drawn = made(validation=CHECKED, datasets=held(others, **changed))
    assert measured(drawn) == pytest.approx(measured(plain), rel=1e-6)


@pytest.mark.parametrize("how", ["its own set", "held out"])
def test_shuffled_tags_do_not_make_it_depend_on_the_seed(how: str, made: Made, others: Path) -> None:
    """At the start, where the adapter does nothing, so that all seeds have the same weights."""
    losses = []
    for seed in (1, 2, 3):
        if how == "its own set":
            settings: dict[str, Any] = {"datasets": held(others, shuffle_tags=True), "validation": CHECKED}
        else:
            dataset = {"folder": str(others), "shuffle_tags": True, "trigger": None}
            settings = {"dataset": dataset, "validation": {**CHECKED, "share": 0.5}}
        losses.append(measured(made(stirred=False, train={"seed": seed}, **settings)))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_it_leaves_no_trace(made: Made, others: Path) -> None:
    """Gradients, training mode, random state; and the step that follows is what it would have been."""
    settings: dict[str, Any] = {"validation": CHECKED, "datasets": held(others), "adapter": {"dropout": 0.3}}
    trainer, undisturbed = made(**settings), made(**settings)
    trainer.job = undisturbed.job = trainer.job.but(
        datasets=[trainer.job.datasets[0].but(adapter_strength=0.5).model_dump(mode="json"), trainer.job.datasets[1]]
    )
    for one in (trainer, undisturbed):
        one.experts.active.objective.job = trainer.job
    before = torch.get_rng_state()
    trainer.validate()
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.experts.active.denoiser.training
    assert all(parameter.grad is None for parameter in trainer.experts.active.adapter.parameters())
    assert trainer.update() == undisturbed.update()
    one, other = trainer.experts.active.adapter.state_dict(), undisturbed.experts.active.adapter.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_can_be_interrupted_and_leaves_the_denoiser_in_training(made: Made, others: Path) -> None:
    def stop() -> None:
        raise Interrupted

    trainer = made(validation=CHECKED, datasets=held(others))
    with pytest.raises(Interrupted), trainer.experts.evaluating("raw"):
        validation_loss(trainer.experts, trainer.data, 3, 1, stop)
    assert trainer.experts.active.denoiser.training


def test_it_measures_the_weights_that_the_file_holds(made: Made, others: Path) -> None:
    """The moving average, where that is saved; the raw ones are back afterwards."""
    job: dict[str, Any] = {"validation": CHECKED, "datasets": held(others), "train": {"ema_decay": 0.5}}
    events: list[Event] = []
    expected = {}
    for which in ("raw", "ema"):
        trainer = made(**job, save={"weights": which})
        raw = trainer.experts.active.adapter.state_dict()
        assert trainer.experts.active.updater.ema is not None
        averaged = {name: value / 3 for name, value in raw.items()}
        for average, value in zip(trainer.experts.active.updater.ema.averages, averaged.values(), strict=True):
            average.copy_(value)
        trainer.emit = events.append
        trainer.validate()
        assert all(torch.equal(value, raw[name]) for name, value in trainer.experts.active.adapter.state_dict().items())
        trainer.experts.active.adapter.load_state_dict(raw if which == "raw" else averaged)
        expected[which] = measured(trainer)
    losses = [event.loss for event in events if isinstance(event, ValidationDone)]
    assert losses == pytest.approx([expected["raw"], expected["ema"]], rel=1e-5)
    assert expected["raw"] != pytest.approx(expected["ema"], rel=1e-3)


def test_metrics_lines_of_a_run(job_of: Jobs, train: Train, others: Path) -> None:
    """A baseline, then every second step and the last; other lines hold all terms, the stage, and no validation."""
    settings = {"train": {"steps": 3, "stage_boundaries": (0.5,)}, "datasets": held(others)}
    job = job_of(**settings).but(
        regularization={"blank_preservation": True, "preservation_every": 2}, validation={"every": 2, "draws": 1}
    )
    events: list[Any] = []
    run = train(job, events.append).run
    lines = run.metrics()
    assert [(line["step"], "validation_loss" in line) for line in lines] == [
        (0, True),
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (3, True),
    ]
    steps = [line for line in lines if "loss" in line]
    common = {"step", "loss", "lr", "grad_norm", "stage", "seconds_per_step", "peak_memory"}
    assert [set(line) - common for line in steps] == [{"blank_preservation"}, set(), {"blank_preservation"}]
    assert all(common <= set(line) for line in steps)
    assert [line["stage"] for line in steps] == [0, 1, 0]
    told = [event for event in events if isinstance(event, ValidationDone)]
    assert [(event.step, event.loss) for event in told] == [
        (line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line
    ]
    (first, *_) = [event for event in events if isinstance(event, StepDone)]
    assert first.parts["blank_preservation"] == steps[0]["blank_preservation"] == 0


def test_validating_changes_nothing_that_is_learned(job_of: Jobs, train: Train, others: Path) -> None:
    """The same training set with and without a set to validate on: the same weights, bit for bit."""
    from safetensors.torch import load

    settings: dict[str, Any] = {"adapter": {"dropout": 0.2}, "train": {"steps": 2, "ema_decay": 0.9}}
    plain = train(job_of(**settings, datasets=[{"flip_x": True}])).run
    datasets = held(others)
    watched = train(
        job_of(**settings, datasets=[{"flip_x": True}, datasets[1]]).but(validation={"every": 1, "draws": 2})
    ).run
    one, other = (load(run.latest().state.read_bytes()) for run in (plain, watched))  # type: ignore[union-attr]
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_is_computed_alike_before_and_after_a_step(
    job_of: Jobs, trainer_of: Callable[..., Trainer], others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that train together would round otherwise on some CPUs, and a run that was just resumed has none yet."""
    together: list[int] = []
    original = fused.Reading.__init__

    def reading(self: Any, layers: Any, *more: Any) -> None:
        together.append(len(layers))
        original(self, layers, *more)

    monkeypatch.setattr(fused.Reading, "__init__", reading)
    trainer = trainer_of(job_of(datasets=held(others), validation=CHECKED))
    before = measured(trainer), together.copy()
    state = trainer.experts.active.adapter.state_dict()
    trainer.update()
    assert max(together) > 1
    assert trainer.experts.active.adapter.knows_siblings
    trainer.experts.active.adapter.load_state_dict(state)
    together.clear()
    assert (measured(trainer), together) == before
    assert set(together) == {1}
    together.clear()
    trainer.update()
    assert max(together) > 1
