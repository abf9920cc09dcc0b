"""The update itself: what it minimises, batches against accumulation, precision, and what is done when it fails."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from trainer_core.adapters.applied import applied
from trainer_core.adapters.parsing import for_modules, parse
from trainer_core.config import JobConfig
from trainer_core.data.variants import Variant
from trainer_core.errors import TrainingError
from trainer_core.families.conditioning import each
from trainer_core.families.texts import stack_text
from trainer_core.randomness import normal_like, uniform
from trainer_core.training.loop import Trainer
from trainer_core.training.step import Term

from ..predicting import predicted
from .updates import saved, terms_of, update_with

if TYPE_CHECKING:
    from trainer_core.data.scan import Sample
    from trainer_core.families.conditioning import Collated, Conditioning, Streams

Jobs = Callable[..., JobConfig]
Trainers = Callable[..., Trainer]


def whole(trainer: Trainer) -> Tensor:
    """All weights as one vector."""
    return torch.cat([value.flatten().double() for value in trainer.experts.active.adapter.state_dict().values()])


def difference(one: Trainer, other: Trainer) -> float:
    """Relative difference of the weights."""
    return ((whole(one) - whole(other)).norm() / whole(one).norm()).item()


def gradients(trainer: Trainer) -> list[Tensor]:
    """Will hold the gradients of the last step."""
    kept: list[Tensor] = []
    original = trainer.experts.active.updater.optimizer.step

    def step(*arguments: Any) -> Any:
        kept[:] = [parameter.grad.clone() for parameter in trainer.experts.active.adapter.parameters()]
        return original(*arguments)

    trainer.experts.active.updater.optimizer.step = step  # type: ignore[method-assign]
    return kept


def in_double(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Computes in double precision. Adam divides each gradient by its own size, so of one that is next to nothing it
    makes a step like any other, rounding errors included; without these, two ways to the same update are the same."""
    trainer.base.dtype = torch.float64
    trainer.experts.active.denoiser.double()
    for flat in trainer.experts.active.adapter.flats():
        flat.follow()
    monkeypatch.setattr("trainer_core.training.step.autocast", lambda *_: nullcontext())
    return trainer


def moved(trainer: Trainer) -> float:
    """How far B is from its start at zero."""
    return sum(
        value.abs().sum().item()
        for name, value in trainer.experts.active.adapter.state_dict().items()
        if "lora_B" in name
    )


def losses(trainer: Trainer, batch: list[Sample], seen: dict[str, int], step: int = 0) -> Tensor:
    """The loss of each sample."""
    return next(terms_of(trainer, batch, step, seen=seen)).minimised


def four(trainer: Trainer) -> list[Sample]:
    (samples,) = trainer.data.samples
    assert len(samples) == 4
    return samples


# --- batch of 4 = 4 batches of 1 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"flip_x": True, "caption_dropout": 0.5}], ids=["plain", "flips and dropout"])
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_accumulation_equals_a_batch(
    settings: dict[str, Any], double: bool, job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the same items: the loss, the gradients, the update and the weights, after each of several steps."""
    at_once = trainer_of(job_of(dataset=settings, train={"learning_rate": 1e-3, "batch_size": 4}))
    one_by_one = trainer_of(job_of(dataset=settings, train={"learning_rate": 1e-3, "gradient_accumulation": 4}))
    trainers = (at_once, one_by_one)
    if double:
        trainers = tuple(in_double(trainer, monkeypatch) for trainer in trainers)
    kept, start = [gradients(trainer) for trainer in trainers], whole(at_once)
    for _ in range(5):
        loss, norm, _ = update_with(at_once, four(at_once))
        loss_of_parts, norm_of_parts, _ = update_with(one_by_one, *([sample] for sample in reversed(four(one_by_one))))
        for trainer in trainers:
            trainer.progress.step += 1
        assert (loss_of_parts, norm_of_parts) == pytest.approx((loss, norm), rel=1e-5)
        one, other = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in kept)
        assert (one - other).norm() < (1e-7 if double else 1e-5) * one.norm()
        assert moved(at_once) > 0
        assert difference(*trainers) < 1e-5
        if double:
            update = (whole(at_once) - start).norm()
            assert (whole(at_once) - whole(one_by_one)).norm() < 1e-6 * update


def test_accumulation_equals_a_batch_through_the_order_of_the_data(job_of: Jobs, trainer_of: Trainers) -> None:
    """The same through `update`: an epoch is one batch of 4, or four of 1."""
    at_once = trainer_of(job_of(train={"batch_size": 4, "learning_rate": 1e-3}))
    one_by_one = trainer_of(job_of(train={"gradient_accumulation": 4, "learning_rate": 1e-3}))
    for _ in range(3):
        losses = [trainer.update()[0] for trainer in (at_once, one_by_one)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        at_once.progress.step += 1
        one_by_one.progress.step += 1
    assert difference(at_once, one_by_one) < 1e-5


def test_short_batches_weigh_by_their_samples(job_of: Jobs, trainer_of: Trainers) -> None:
    """3 + 1 accumulated is the mean over four samples, and not the mean of two means."""
    split, whole = (trainer_of(job_of(train={"batch_size": 4, "learning_rate": 1e-3})) for _ in range(2))
    samples = four(split)
    assert update_with(split, samples[:3], samples[3:])[0] == pytest.approx(update_with(whole, samples)[0], rel=1e-5)
    assert difference(split, whole) < 1e-5


def test_an_item_that_comes_twice_in_a_step_has_other_noise(job_of: Jobs, trainer_of: Trainers) -> None:
    trainer = trainer_of(job_of())
    sample, seen = four(trainer)[0], {}
    with torch.no_grad():
        first, second = losses(trainer, [sample], seen), losses(trainer, [sample], seen)
        both = losses(trainer, [sample, sample], {})
    assert first.item() != pytest.approx(second.item(), rel=1e-3)
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-5, atol=1e-6)


# --- what is minimised -----------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_flow_matching(job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from the denoiser: its input lies between latents and noise, and the loss is measured to that line."""
    trainer = trainer_of(job_of(train={"timestep_type": "linear"}))
    sample = four(trainer)[2]
    given: dict[str, Tensor] = {}
    original = trainer.base.predict

    def predict(denoiser: Any, noisy: Streams, t: Tensor, conditioning: Collated) -> Streams:
        answer = original(denoiser, noisy, t, conditioning)
        given.update(noisy=noisy["main"], t=t, v=answer["main"], text=conditioning.text["text"])
        return answer

    monkeypatch.setattr(trainer.base, "predict", predict)
    with torch.no_grad():
        loss = losses(trainer, [sample], {})
    latents, t = trainer.data.latents(sample, Variant()), given["t"]
    # x_t = (1-t)·(mean + std·n1) + t·n2, target n2 - x_0: both draws are recovered from the seeds by their places
    place = (42, 0, sample.key, 1)
    clean = latents.mean["main"] + latents.std["main"] * normal_like((16, 8, 8), "posterior", *place)
    noise = normal_like((16, 8, 8), "noise", *place)
    assert t.item() == pytest.approx(uniform("timestep", *place), rel=1e-6)
    torch.testing.assert_close(given["noisy"][0], (1 - t) * clean + t * noise)
    assert loss.item() == pytest.approx(((given["v"][0] - (noise - clean)) ** 2).mean().item(), rel=1e-5)
    assert torch.equal(given["text"][0], trainer.data.text("a red zorble")["text"]) == (sample.item.key == "red.png")


def test_clipping_bounds_the_gradient(job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def record(trainer: Trainer) -> None:
        original = trainer.experts.active.updater.optimizer.step

        def step(*arguments: Any) -> Any:
            gradients = [p.grad.flatten() for p in trainer.experts.active.adapter.parameters() if p.grad is not None]
            norms.append(torch.cat(gradients).norm().item())
            return original(*arguments)

        monkeypatch.setattr(trainer.experts.active.updater.optimizer, "step", step)

    steep = {"loss_weight": 1000}  # 0 is not the usual 1 either
    clipped = trainer_of(job_of(dataset=steep, train={"max_grad_norm": 1e-3}))
    free = trainer_of(job_of(dataset=steep, train={"max_grad_norm": 0}))
    for trainer in (clipped, free):
        record(trainer)
        norms.append(update_with(trainer, four(trainer))[1])
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1] == pytest.approx(norms[3], rel=1e-5), "the norm that is told is that before clipping"
    assert norms[2] == pytest.approx(norms[3], rel=1e-5)
    assert norms[2] > 2


def test_recomputing_activations_changes_nothing(job_of: Jobs, trainer_of: Trainers) -> None:
    """Gradient checkpointing, with dropout, which must see the same mask again."""
    trainers = [
        trainer_of(job_of(adapter={"dropout": 0.3}, train={"gradient_checkpointing": on, "batch_size": 2}))
        for on in (False, True)
    ]
    for trainer in trainers:
        for _ in range(3):
            trainer.update()
            trainer.progress.step += 1
    assert moved(trainers[0]) > 0
    assert difference(*trainers) < 1e-6


def test_the_base_is_not_changed(job_of: Jobs, trainer_of: Trainers) -> None:
    trainer = trainer_of(job_of(train={"weight_decay": 0.5}))
    ours = {id(p) for p in trainer.experts.active.adapter.parameters()}
    before = {name: p.clone() for name, p in trainer.experts.active.denoiser.named_parameters() if id(p) not in ours}
    for _ in range(2):
        trainer.update()
        trainer.progress.step += 1
    after = dict(trainer.experts.active.denoiser.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_layer_learns(job_of: Jobs, trainer_of: Trainers) -> None:
    """But for the last text layers of the last double block, whose output nobody reads; FLUX's text stream goes on."""
    trainer = trainer_of(job_of(adapter={"targets": "all"}))
    update_with(trainer, four(trainer))
    still = [
        name
        for name, value in trainer.experts.active.adapter.state_dict().items()
        if "lora_B" in name and not value.any()
    ]
    assert still == []


def test_training_learns(job_of: Jobs, trainer_of: Trainers) -> None:
    """The same noise again and again: the loss on it must fall a lot."""
    trainer = trainer_of(job_of(train={"learning_rate": 5e-3}, adapter={"rank": 8}))
    with torch.no_grad():
        before = losses(trainer, four(trainer), {}).mean().item()
    for _ in range(25):
        update_with(trainer, four(trainer))
    with torch.no_grad():
        after = losses(trainer, four(trainer), {}).mean().item()
    assert after < 0.8 * before


def test_bfloat16_trains_a_float32_lora(job_of: Jobs, trainer_of: Trainers) -> None:
    trainer = trainer_of(job_of(model={"dtype": "bfloat16"}, train={"batch_size": 4}))
    exact = trainer_of(job_of(train={"batch_size": 4}))
    assert trainer.experts.active.denoiser.dtype == torch.bfloat16
    loss, _, _ = trainer.update()
    assert loss == pytest.approx(exact.update()[0], rel=0.05)
    assert {parameter.dtype for parameter in trainer.experts.active.adapter.parameters()} == {torch.float32}
    assert moved(trainer) > 0


# --- how it draws ----------------------------------------------------------------------------------------------------


def test_flips_captions_and_times_are_drawn_anew_each_step(
    job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 1,200 draws: half are flipped, three in ten captions dropped, and times are spread as the sampler's are."""
    trainer = trainer_of(job_of(dataset={"flip_x": True, "caption_dropout": 0.3}))
    assert trainer.batches.timesteps.kind == "shift", "what the embedded base asks for"
    flips: list[bool] = []
    texts: list[str] = []
    times: list[Tensor] = []
    latents, conditioning = trainer.data.latents, trainer.data.conditioning

    def predict(denoiser: Any, noisy: Streams, t: Tensor, _: Collated) -> Streams:
        times.append(t)
        return each(torch.zeros_like, noisy)

    def conditioned(*given: Any) -> list[Conditioning]:
        made = conditioning(*given)
        texts.extend(one.prompt for one in made)
        return made

    monkeypatch.setattr(trainer.data, "latents", lambda s, form: (flips.append(form.flip_x), latents(s, form))[1])
    monkeypatch.setattr(trainer.data, "conditioning", conditioned)
    monkeypatch.setattr(trainer.base, "predict", predict)
    for step in range(300):
        losses(trainer, four(trainer), {}, step)
    count = 1200
    assert sum(flips) / count == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / count))
    assert texts.count("zorble") / count == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / count))
    drawn = torch.cat(times)
    for t in (0.25, 0.5, 0.75, 0.9):
        expected = t / (3 - 2 * t)  # t = 3u / (1 + 2u)
        assert (drawn < t).double().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


def test_pictures_of_several_sizes(job_of: Jobs, trainer_of: Trainers, pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "sizes"))
    for name, size in (("wide", (128, 48)), ("tall", (48, 128)), ("small", (40, 40))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    trainer = trainer_of(job_of(dataset={"folder": str(folder), "resolutions": (32, 64)}, train={"batch_size": 2}))
    seen = set()
    for number in range(trainer.batches._order.epoch_length(0)):
        batch = trainer.batches.get(number)[0].samples
        seen |= {sample.key for sample in batch}
        update_with(trainer, batch)
    assert len(seen) == sum(len(group) for group in trainer.data.samples) == 13
    assert whole(trainer).isfinite().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_file_of_less_precision_loses_nothing_of_the_training(dtype: str, job_of: Jobs, trainer_of: Trainers) -> None:
    short, exact = trainer_of(job_of(save={"dtype": dtype})), trainer_of(job_of())
    for trainer in (short, exact):
        trainer.update()
        trainer.progress.step += 1
    one, other = load(saved(short).lora.read_bytes()), load(saved(exact).lora.read_bytes())
    for name, value in other.items():
        assert torch.equal(one[name], value if name.endswith(".alpha") else value.to(getattr(torch, dtype))), name
    states = [load(saved(trainer).state.read_bytes()) for trainer in (short, exact)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_file_means_what_the_adapter_means(job_of: Jobs, trainer_of: Trainers) -> None:
    """The denoiser with the adapter, and a fresh one with the saved file applied: the same prediction."""
    trainer = trainer_of(job_of(adapter={"rank": 3, "alpha": 0.7, "targets": "all"}))
    for _ in range(3):
        update_with(trainer, four(trainer))
    x, t = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.9])
    text = stack_text([trainer.data.text(f"a {colour} zorble") for colour in ("red", "blue")], trainer.base.device)
    plain = trainer.base.load_denoiser()
    changes = for_modules(parse(load(saved(trainer).lora.read_bytes())), plain, trainer.base)
    with torch.no_grad():
        ours = predicted(trainer.base, trainer.experts.active.denoiser.eval(), x, t, text)
        without = predicted(trainer.base, plain, x, t, text)
        with applied(plain, changes, 1.0):
            applied_file = predicted(trainer.base, plain, x, t, text)
        with trainer.experts.active.adapter.disabled():
            assert torch.equal(predicted(trainer.base, trainer.experts.active.denoiser, x, t, text), without)
    assert (ours - without).norm() > 0.01 * without.norm()
    assert (ours - applied_file).norm() < 1e-5 * ours.norm()


# --- when it fails ---------------------------------------------------------------------------------------------------


def spoil(trainer: Trainer, how: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes all losses."""
    original = trainer.experts.active.objective.terms

    def terms(*arguments: Any) -> Iterator[Term]:
        for term in original(*arguments):
            yield Term(term.name, how(term.minimised), how(term.shown))

    monkeypatch.setattr(trainer.experts.active.objective, "terms", terms)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(
    value: float, job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(job_of())
    before = trainer.experts.active.adapter.state_dict()
    spoil(trainer, lambda loss: loss * value, monkeypatch)
    with pytest.raises(TrainingError, match=r"step 1: .*not finite.*learning_rate") as caught:
        update_with(trainer, four(trainer)[:1])
    assert four(trainer)[0].item.key in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in trainer.experts.active.adapter.state_dict().items())


def test_gradients_that_are_not_finite_do_not_reach_the_weights(
    job_of: Jobs, trainer_of: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite loss may have a gradient that is none; then the weights would be lost, and saved so."""
    trainer = trainer_of(job_of())
    before = trainer.experts.active.adapter.state_dict()
    # sqrt(x - x) is 0, and its derivative is infinite
    spoil(trainer, lambda x: x + (x - x.detach()).abs().sqrt() if x.requires_grad else x, monkeypatch)
    with pytest.raises(TrainingError, match="not finite"):
        update_with(trainer, four(trainer))
    assert all(torch.equal(value, before[name]) for name, value in trainer.experts.active.adapter.state_dict().items())
