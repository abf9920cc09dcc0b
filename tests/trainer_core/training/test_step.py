"""The main term of a step: what is drawn, aimed at and weighed, data set by data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor

from trainer_core.families.texts import stack_text
from trainer_core.objective.timesteps import WEIGHT_A, WEIGHT_B, WEIGHT_FLOOR
from trainer_core.training.step import MAIN, Term

from ..predicting import predicted
from .updates import drawn, saved, terms_of, update_with

if TYPE_CHECKING:
    from trainer_core.data.scan import Sample
    from trainer_core.families.conditioning import Conditioning
    from trainer_core.training.batch_source import TrainBatch
    from trainer_core.training.loop import Trainer

    from .conftest import Call

Made = Callable[..., "Trainer"]
Record = Callable[["Trainer"], list]


def main_term(trainer: Trainer, batch: list[Sample], step: int = 0, number: int = 0) -> Term:
    """The first term alone."""
    term = next(terms_of(trainer, batch, step, number))
    assert term.name == MAIN
    return term


def gradient(trainer: Trainer, loss: Tensor) -> Tensor:
    """Of all parameters as one vector."""
    parameters = trainer.experts.active.adapter.parameters()
    found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def predict(trainer: Trainer, batch: TrainBatch, call: Call, prompts: list[Conditioning]) -> Tensor:
    """For the noisy latents and the guidance of a call."""
    return trainer.experts.active.objective.predict({"main": call.noisy}, batch.t, prompts, call.guidance)["main"]


def sets(trainer: Trainer) -> list[list[Sample]]:
    return trainer.data.samples


# --- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_stage_lasts_an_optimizer_step(accumulated: int, made: Made, record: Record) -> None:
    """All micro-batches of a step are of one stage, and the next step is of the next."""
    stages = {"stage_boundaries": (0.7, 0.4), "timestep_min": 0.1, "timestep_max": 0.9, "timestep_type": "sigmoid"}
    trainer = made(train={**stages, "gradient_accumulation": accumulated, "batch_size": 4})
    calls = record(trainer)
    for low, high in [(0.7, 0.9), (0.4, 0.7), (0.1, 0.4), (0.7, 0.9)]:
        calls.clear()
        trainer.update()
        trainer.progress.step += 1
        times = torch.cat([call.t for call in calls])
        assert len(calls) == accumulated
        assert len(times.unique()) == 4 * accumulated
        assert low <= times.min() <= times.max() <= high


def test_one_stage_alone_and_slow_changes(made: Made, record: Record) -> None:
    low = made(train={"stage_boundaries": (0.5,), "stages": "low_noise", "batch_size": 4})
    slow = made(train={"stage_boundaries": (0.5,), "stage_switch_every": 2, "batch_size": 4})
    for trainer, expected in ((low, [False] * 4), (slow, [True, True, False, False])):
        calls = record(trainer)
        for step in range(4):
            main_term(trainer, sets(trainer)[0], step)
        assert [bool((call.t > 0.5).all()) for call in calls] == expected
        assert [bool((call.t < 0.5).all()) for call in calls] == [not high for high in expected]


def test_auto_is_what_the_base_was_made_with(made: Made) -> None:
    assert made().batches.timesteps.kind == made().base.timestep_type == "shift"
    assert made(train={"timestep_type": "linear"}).batches.timesteps.kind == "linear"


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mse", "mae", "huber", "smooth_l1"])
def test_the_kind_of_loss(kind: str, made: Made, record: Record) -> None:
    """Against torch's own losses of what the denoiser said and the velocity that x and the posterior mean imply."""
    trainer = made(train={"loss_type": kind, "huber_delta": 0.3})
    calls, batch = record(trainer), sets(trainer)[0]
    term = main_term(trainer, batch)
    draws = drawn(trainer, batch)
    arguments = (calls[0].predicted, draws.noise["main"] - draws.clean["main"])
    theirs = {
        "mse": lambda: functional.mse_loss(*arguments, reduction="none"),
        "mae": lambda: functional.l1_loss(*arguments, reduction="none"),
        "huber": lambda: functional.huber_loss(*arguments, reduction="none", delta=0.3),
        "smooth_l1": lambda: functional.smooth_l1_loss(*arguments, reduction="none", beta=0.3),
    }[kind]()
    torch.testing.assert_close(term.minimised.detach(), theirs.mean((1, 2, 3)))
    torch.testing.assert_close(term.shown, theirs.mean((1, 2, 3)))
    assert not term.shown.requires_grad


def test_weights_of_times_change_what_is_minimised_and_not_what_is_shown(made: Made, record: Record) -> None:
    plain = made(train={"timestep_type": "linear"})
    weighted = made(train={"timestep_type": "weighted"})
    snr = made(train={"timestep_type": "linear", "min_snr_gamma": 5.0})
    calls = record(plain)
    expected = main_term(plain, sets(plain)[0])
    (t,) = {tuple(call.t.tolist()) for call in calls}
    times = torch.tensor(t, dtype=torch.float64)
    # a Beta density over a floor; min(SNR, 5) t², SNR = ((1 - t) / t)²
    beta = torch.distributions.Beta(torch.tensor(WEIGHT_A).double(), torch.tensor(WEIGHT_B).double())
    by_hand = {
        weighted: WEIGHT_FLOOR + (1 - WEIGHT_FLOOR) * beta.log_prob(times).exp(),
        snr: torch.minimum(((1 - times) / times) ** 2, torch.tensor(5.0)) * times**2,
    }
    for trainer, weights in by_hand.items():
        term = main_term(trainer, sets(trainer)[0])
        torch.testing.assert_close(term.shown, expected.shown)
        torch.testing.assert_close(term.minimised, expected.minimised * weights.float(), rtol=1e-4, atol=1e-6)


def test_the_loss_weight_of_a_set(made: Made, pictures: Path, others: Path) -> None:
    """Nothing is learned from a set of weight 0, and three times as much from one of weight 3."""
    trainer = made(
        datasets=[{"folder": str(pictures)}, {"folder": str(others), "loss_weight": 0}, {"loss_weight": 3}],
        train={"optimizer": "SGD", "max_grad_norm": 0, "weight_decay": 0},
    )
    normal, none, triple = sets(trainer)
    silent = main_term(trainer, none)
    assert (silent.shown > 0).all(), "what is shown does not depend on weights"
    assert not silent.minimised.any()
    assert not gradient(trainer, silent.minimised).any()
    before = trainer.experts.active.adapter.state_dict()
    _, norm, _ = update_with(trainer, none)
    assert norm == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.experts.active.adapter.state_dict().items())
    # the same picture in the first and in the third set has another key, so other noise: compare within one set
    loud = main_term(trainer, triple)
    torch.testing.assert_close(loud.minimised, 3 * loud.shown)
    mixed = main_term(trainer, [normal[0], none[0], triple[0]])
    torch.testing.assert_close(mixed.minimised.detach() / mixed.shown, torch.tensor([1.0, 0.0, 3.0]))


# --- strength --------------------------------------------------------------------------------------------------------


def test_half_the_strength_is_half_of_b(made: Made, record: Record, others: Path) -> None:
    """The adapter's output is halved in every layer, while its set trains and no longer."""
    trainer = made(datasets=[{"adapter_strength": 0.5}, {"folder": str(others)}, {"adapter_strength": 0.0}])
    full = made(datasets=[{}, {"folder": str(others)}, {}])
    halved = full.experts.active.adapter.state_dict()
    full.experts.active.adapter.load_state_dict(
        {name: value / 2 if "lora_B" in name else value for name, value in halved.items()}
    )
    calls, expected = record(trainer), record(full)
    for number in (0, 1, 0, 2):
        main_term(trainer, sets(trainer)[number])
        main_term(full, sets(full)[number])
    assert [call.strength for call in calls] == [0.5, 1.0, 0.5, 0.0]
    torch.testing.assert_close(calls[0].predicted, expected[0].predicted)
    assert not torch.allclose(calls[1].predicted, expected[1].predicted, rtol=1e-3)
    with torch.no_grad(), trainer.experts.active.adapter.disabled():
        draws = drawn(trainer, sets(trainer)[2])
        without = predict(trainer, draws, calls[3], draws.captioned)
    torch.testing.assert_close(calls[3].predicted, without)
    # layer by layer: what is added to the base's output, for any input
    layer = next(iter(trainer.experts.active.adapter.layers.values()))
    x = torch.randn(3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(0))
    added = []
    for strength in (1.0, 0.5):
        trainer.experts.active.adapter.set_strength(strength)
        added.append((layer(x) - layer.base_layer(x)).detach())
    torch.testing.assert_close(added[1], added[0] / 2)
    assert added[0].abs().max() > 1e-3


def test_the_strength_of_training_is_not_in_the_file(made: Made) -> None:
    from safetensors.torch import load

    trainer, plain = made(dataset={"adapter_strength": 0.5}), made()
    main_term(trainer, sets(trainer)[0])
    one, other = load(saved(trainer).lora.read_bytes()), load(saved(plain).lora.read_bytes())
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The left half is trained on, for every picture of `pictures`."""
    folder = tmp_path_factory.mktemp("masks")
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, :32] = 255
    for name in ("red", "green", "blue", "white"):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_what_is_masked_out_does_not_count(made: Made, record: Record, masks: Path) -> None:
    """Over the left half of the latents by hand; what is predicted in the right half changes nothing."""
    trainer = made(dataset={"mask_folder": str(masks), "mask_minimum": 0.0}, train={"batch_size": 4})
    batch, calls = sets(trainer)[0], record(trainer)
    term = main_term(trainer, batch)
    draws = drawn(trainer, batch)
    errors = (calls[0].predicted - (draws.noise["main"] - draws.clean["main"])).square()
    torch.testing.assert_close(term.shown, errors[..., :4].mean((1, 2, 3)))
    torch.testing.assert_close(term.minimised.detach(), term.shown)
    right = torch.zeros_like(errors)
    right[..., 4:] = 100.0
    original = trainer.base.predict
    trainer.base.predict = lambda *a: {"main": original(*a)["main"] + right}  # type: ignore[method-assign]
    spoiled = main_term(trainer, batch)
    assert torch.equal(spoiled.minimised, term.minimised)
    assert torch.equal(gradient(trainer, spoiled.minimised), gradient(trainer, term.minimised))


def test_a_minimum_leaves_a_little_of_what_is_masked_out(made: Made, record: Record, masks: Path) -> None:
    """Weights 1 and 0.2, divided by their mean 0.6; inverted the other way round."""
    for inverted, (left, right) in ((False, (1.0, 0.2)), (True, (0.2, 1.0))):
        trainer = made(dataset={"mask_folder": str(masks), "mask_minimum": 0.2, "invert_mask": inverted})
        batch, calls = sets(trainer)[0], record(trainer)
        term = main_term(trainer, batch)
        draws = drawn(trainer, batch)
        errors = (calls[0].predicted - (draws.noise["main"] - draws.clean["main"])).square()
        means = [errors[..., :4].mean((1, 2, 3)), errors[..., 4:].mean((1, 2, 3))]
        torch.testing.assert_close(term.shown, (left * means[0] + right * means[1]) / 1.2, rtol=1e-4, atol=1e-5)


def test_masked_and_unmasked_sets_in_one_batch(made: Made, masks: Path) -> None:
    trainer = made(datasets=[{"mask_folder": str(masks), "mask_minimum": 0.0}, {}])
    with_mask, without = sets(trainer)
    mixed = main_term(trainer, [with_mask[0], without[0]])
    torch.testing.assert_close(mixed.shown[:1], main_term(trainer, with_mask[:1]).shown)
    torch.testing.assert_close(mixed.shown[1:], main_term(trainer, without[:1]).shown)


# --- guidance --------------------------------------------------------------------------------------------------------

DIFFERENTIAL: dict[str, Any] = {"differential_guidance": True, "differential_guidance_scale": 3.0}


def test_differential_guidance_alone_triples_the_gradient(made: Made) -> None:
    """It works without anything else, and the loss that is told is the plain one."""
    plain, guided = made(), made(DIFFERENTIAL)
    one, other = main_term(plain, sets(plain)[0]), main_term(guided, sets(guided)[0])
    assert torch.equal(one.shown, other.shown)
    torch.testing.assert_close(other.minimised, 9 * one.minimised)
    torch.testing.assert_close(
        gradient(guided, other.minimised), 3 * gradient(plain, one.minimised), rtol=1e-4, atol=1e-6
    )
    (loss, norm, _), (same, tripled, _) = plain.update(), guided.update()
    assert (same, tripled) == pytest.approx((loss, 3 * norm), rel=1e-4)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "sigma"])
def test_contrastive_guidance(schedule: str, projected: bool, made: Made, record: Record) -> None:
    """Against the target worked out from the two passes that were made: first without prompt and graph, then with."""
    settings = {
        "contrastive_guidance": True,
        "contrastive_guidance_scale": 4.0,
        "contrastive_guidance_schedule": schedule,
        "contrastive_guidance_projection": projected,
    }
    trainer = made(settings, adapter={"dropout": 0.5})
    batch = sets(trainer)[0]
    main_term(trainer, batch, step=1)  # leaves a place of dropout behind
    calls = record(trainer)
    term = main_term(trainer, batch)
    blank, prompted = calls
    assert (blank.graph, prompted.graph) == (False, True)
    assert blank.adapted
    assert torch.equal(blank.noisy, prompted.noisy)
    assert torch.equal(blank.t, prompted.t)
    assert torch.equal(blank.text, stack_text([trainer.data.text("")] * 4, trainer.base.device)["text"])
    draws = drawn(trainer, batch)
    target, u = draws.noise["main"] - draws.clean["main"], blank.predicted
    g = torch.full((4,), 4.0) if schedule == "constant" else 1 + 3 * draws.t
    for call in calls:
        torch.testing.assert_close(call.guidance, g)
    if projected:
        u = torch.stack([x * (y * x).sum() / (x * x).sum() for x, y in zip(u, target, strict=True)])
    aim = u + g.view(4, 1, 1, 1) * (target - u)
    expected = (prompted.predicted - aim).square().mean((1, 2, 3))
    torch.testing.assert_close(term.minimised.detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(term.shown, (prompted.predicted - target).square().mean((1, 2, 3)))
    trainer.experts.active.adapter.seed_dropout()
    with torch.no_grad():
        undropped = predict(trainer, draws, blank, draws.blank)
    torch.testing.assert_close(blank.predicted, undropped), "a target is made without dropout"


def test_preservation_has_the_guidance_of_the_main_pass(made: Made, record: Record) -> None:
    """What is preserved is what the model will be used with."""
    preserved = {"output_preservation": True, "output_preservation_class": "cat", "blank_preservation": True}
    trainer = made({**preserved, "contrastive_guidance": True, "contrastive_guidance_scale": 4.0})
    calls = record(trainer)
    list(terms_of(trainer, sets(trainer)[0]))
    assert len(calls) == 6  # two for the main term, two for each preservation
    for call in calls:
        torch.testing.assert_close(call.guidance, torch.full((4,), 4.0))


def test_contrastive_guidance_and_differential_guidance_go_together(made: Made) -> None:
    contrastive = {"contrastive_guidance": True, "contrastive_guidance_scale": 4.0}
    one, both = made(contrastive), made({**contrastive, **DIFFERENTIAL})
    single, tripled = (gradient(t, main_term(t, sets(t)[0]).minimised) for t in (one, both))
    torch.testing.assert_close(tripled, 3 * single, rtol=1e-4, atol=1e-6)


# --- regularization sets ---------------------------------------------------------------------------------------------


def regularized(others: Path, target: str, **settings: Any) -> dict[str, Any]:
    """A training set, and a regularization set."""
    plain = {"folder": str(others), "role": "regularization", "trigger": None}
    return {"datasets": [{}, {**plain, "regularization_target": target, **settings}]}


def test_the_base_as_target_has_no_loss_at_the_start(made: Made, others: Path) -> None:
    trainer = made(stirred=False, **regularized(others, "base"))
    term = main_term(trainer, sets(trainer)[1])
    assert not term.minimised.any()
    assert not gradient(trainer, term.minimised).any()
    assert (main_term(trainer, sets(trainer)[0]).minimised > 0).all()


def test_the_base_as_target_by_hand(made: Made, record: Record, others: Path) -> None:
    trainer = made(**regularized(others, "base"))
    batch, calls = sets(trainer)[1], record(trainer)
    term = main_term(trainer, batch)
    assert [(call.adapted, call.graph) for call in calls] == [(False, False), (True, True)]
    plain, draws = trainer.base.load_denoiser(), drawn(trainer, batch)
    text = stack_text([trainer.data.text(one.prompt) for one in draws.captioned], trainer.base.device)
    assert sorted(one.prompt for one in draws.captioned) == ["a door, old, blue", "a lamp, tall, green"]
    with torch.no_grad():
        prior = predicted(trainer.base, plain, calls[0].noisy, draws.t, text)
    torch.testing.assert_close(term.minimised.detach(), (calls[1].predicted - prior).square().mean((1, 2, 3)))
    assert (term.minimised > 1e-6).all()


def test_images_as_target_are_learned_like_any_other(made: Made, record: Record, others: Path) -> None:
    trainer = made(**regularized(others, "images"))
    batch, calls = sets(trainer)[1], record(trainer)
    term, draws = main_term(trainer, batch), drawn(trainer, batch)
    expected = (calls[0].predicted - (draws.noise["main"] - draws.clean["main"])).square().mean((1, 2, 3))
    torch.testing.assert_close(term.minimised.detach(), expected)


@pytest.mark.parametrize("target", ["images", "base"])
def test_regularization_samples_are_not_guided(target: str, made: Made, record: Record, others: Path) -> None:
    guided = made({**DIFFERENTIAL, "contrastive_guidance": True}, **regularized(others, target))
    plain = made(**regularized(others, target))
    calls, _ = record(guided), record(plain)  # who looks on changes how layers compute, and so the last bits
    one, other = (main_term(trainer, sets(trainer)[1]) for trainer in (guided, plain))
    assert torch.equal(one.minimised, other.minimised)
    assert [call.guidance for call in calls] == [None] * len(calls)
    trained = main_term(guided, sets(guided)[0])
    assert not torch.allclose(trained.minimised, trained.shown)


def test_regularization_batches_come_in_their_share(made: Made, others: Path) -> None:
    """floor((n + 1) · 0.25) > floor(n · 0.25): the last of every four micro-batches."""
    trainer = made({"ratio": 0.25}, **regularized(others, "base"))
    roles = [trainer.batches.get(n)[0].samples[0].dataset for n in range(8)]
    assert roles == [0, 0, 0, 1] * 2
