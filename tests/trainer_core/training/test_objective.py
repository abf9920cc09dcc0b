"""Preservation: Differential Output Preservation, Blank Prompt Preservation, and how terms come together in a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from trainer_core.families.texts import stack_text
from trainer_core.training.step import BLANK, MAIN, OUTPUT, Term

from ..predicting import predicted
from .updates import drawn, terms_of, update_with

if TYPE_CHECKING:
    from trainer_core.data.scan import Sample
    from trainer_core.families.conditioning import Conditioning
    from trainer_core.training.loop import Trainer

Made = Callable[..., "Trainer"]
Record = Callable[["Trainer"], list]
DOP: dict[str, Any] = {
    "output_preservation": True,
    "output_preservation_class": "shape",
    "output_preservation_weight": 2.5,
}
BPP: dict[str, Any] = {"blank_preservation": True, "blank_preservation_weight": 0.5}


def terms(trainer: Trainer, batch: list[Sample], step: int = 0, number: int = 0) -> dict[str, Term]:
    return {term.name: term for term in terms_of(trainer, batch, step, number)}


def prompts(conditioning: list[Conditioning] | None) -> list[str]:
    assert conditioning is not None
    return [one.prompt for one in conditioning]


def gradient(trainer: Trainer, loss: Tensor) -> Tensor:
    """Of all parameters as one vector."""
    parameters = trainer.experts.active.adapter.parameters()
    found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def captions_of(trainer: Trainer, batch: list[Sample], text: Callable[[str], str]) -> list[str]:
    """What the denoiser should read, from the caption files."""
    return [text(sample.item.captions[0].replace("[trigger]", "zorble")) for sample in batch]


@pytest.mark.parametrize(
    ("settings", "name", "prompt", "weight"),
    [
        (DOP, OUTPUT, lambda caption: caption.replace("zorble", "shape"), 2.5),
        (BPP, BLANK, lambda caption: "", 0.5),
    ],
    ids=["output", "blank"],
)
def test_a_preservation_pass_by_hand(
    settings: dict[str, Any], name: str, prompt: Callable[[str], str], weight: float, made: Made, record: Record
) -> None:
    """λ · mean((v_θ(x, t, c) - v_base(x, t, c))²) with the main pass's x and t, and another prompt: value, gradient."""
    trainer = made(settings)
    (batch,) = trainer.data.samples
    calls = record(trainer)
    found = terms(trainer, batch)
    assert list(found) == [MAIN, name]
    main, prior, kept = calls
    assert [(call.adapted, call.graph) for call in calls] == [(True, True), (False, False), (True, True)]
    for call in (prior, kept):
        assert torch.equal(call.noisy, main.noisy)
        assert torch.equal(call.t, main.t)
    text = stack_text([trainer.data.text(c) for c in captions_of(trainer, batch, prompt)], trainer.base.device)
    assert torch.equal(prior.text, text["text"])
    assert torch.equal(kept.text, text["text"])
    assert not torch.equal(main.text, text["text"])
    plain = trainer.base.load_denoiser()
    with torch.no_grad():
        base = predicted(trainer.base, plain, main.noisy, main.t, text)
    mine = predicted(trainer.base, trainer.experts.active.denoiser, main.noisy, main.t, text)
    by_hand = (mine - base).square().mean((1, 2, 3))
    torch.testing.assert_close(found[name].minimised, weight * by_hand, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[name].shown, by_hand.detach(), rtol=1e-6, atol=1e-6)
    assert (found[name].shown > 1e-5).all()
    torch.testing.assert_close(
        gradient(trainer, found[name].minimised), gradient(trainer, weight * by_hand), rtol=1e-5, atol=1e-6
    )


def test_at_the_start_there_is_nothing_to_preserve(made: Made) -> None:
    """B = 0: the adapter changes nothing, so both terms and their gradients are exactly zero."""
    trainer = made({**DOP, **BPP}, stirred=False)
    found = terms(trainer, trainer.data.samples[0])
    assert list(found) == [MAIN, OUTPUT, BLANK]
    for name in (OUTPUT, BLANK):
        assert not found[name].minimised.any()
        assert not gradient(trainer, found[name].minimised).any()
    assert gradient(trainer, found[MAIN].minimised).any()


def test_the_main_term_is_as_it_is_without_preservation(made: Made) -> None:
    """Its value and gradient bit for bit, with dropout, in any step and micro-batch."""
    trainers = [made(settings, adapter={"dropout": 0.3}) for settings in ({}, DOP, BPP, {**DOP, **BPP})]
    expected: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for trainer in trainers:
        for place in ((0, 0), (0, 1), (5, 0)):
            main = terms(trainer, trainer.data.samples[0], *place)[MAIN]
            found = main.minimised.detach(), gradient(trainer, main.minimised)
            first = expected.setdefault(place, found)
            assert all(torch.equal(one, other) for one, other in zip(found, first, strict=True))
    assert not torch.equal(expected[0, 0][1], expected[0, 1][1]), "dropout differs from micro-batch to micro-batch"


def test_the_gradient_of_a_step_is_that_of_the_sum(made: Made) -> None:
    """Terms that are run one after the other, against the sum of all of them run at once."""
    trainer = made({**DOP, **BPP}, train={"optimizer": "SGD", "learning_rate": 1.0, "max_grad_norm": 0})
    (batch,) = trainer.data.samples
    found = terms(trainer, batch)
    expected = gradient(trainer, torch.stack([term.minimised for term in found.values()]).sum(0).mean())
    kept: list[Tensor] = []
    original = trainer.experts.active.updater.optimizer.step
    trainer.experts.active.updater.optimizer.step = lambda *a: (  # type: ignore[method-assign]
        kept.append(torch.cat([p.grad.flatten() for p in trainer.experts.active.adapter.parameters()])),
        original(*a),
    )
    loss, norm, parts = update_with(trainer, batch)
    torch.testing.assert_close(kept[0], expected, rtol=1e-5, atol=1e-6)
    assert norm == pytest.approx(expected.norm().item(), rel=1e-5)
    assert loss == pytest.approx(found[MAIN].shown.mean().item(), rel=1e-6)
    assert parts == pytest.approx({name: found[name].shown.mean().item() for name in (OUTPUT, BLANK)}, rel=1e-6)


# --- captions without the trigger ------------------------------------------------------------------------------------


def of_half(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "trigger_placement": "only_placeholder"}


def test_captions_without_the_trigger_contribute_nothing(made: Made, half_triggered: Path) -> None:
    trainer = made(DOP, dataset=of_half(half_triggered))
    batch = sorted(trainer.data.samples[0], key=lambda sample: "zorble" not in sample.item.captions[0].split())
    names = [sample.item.key for sample in batch]
    assert set(names[:2]) == {"one.png", "two.png"}
    kept = terms(trainer, batch)[OUTPUT]
    assert (kept.minimised[:2] > 1e-5).all()
    assert not kept.minimised[2:].any()
    assert not gradient(trainer, kept.minimised[2:]).any()
    assert list(terms(trainer, batch[2:])) == [MAIN]
    assert prompts(drawn(trainer, batch).of_class)[:4] == [
        {"one.png": "a red shape", "two.png": "shape on grass", "three.png": "a house", "four.png": "zorbleland"}[name]
        for name in names
    ]


def test_dropped_captions(made: Made) -> None:
    """A caption dropped to the trigger is preserved as the class word alone, one dropped to blank not at all."""
    blank = made(DOP, dataset={"caption_dropout": 1.0, "dropped_caption": "blank"})
    assert list(terms(blank, blank.data.samples[0])) == [MAIN]
    trigger = made(DOP, dataset={"caption_dropout": 1.0, "dropped_caption": "trigger"})
    draws = drawn(trigger, trigger.data.samples[0])
    assert (set(prompts(draws.captioned)), set(prompts(draws.of_class))) == ({"zorble"}, {"shape"})


def test_several_class_words_take_turns(made: Made) -> None:
    trainer = made({**DOP, "output_preservation_class": "shape, red thing"})
    (batch,) = trainer.data.samples
    seen = {c for step in range(40) for c in prompts(drawn(trainer, batch, step).of_class)}
    assert seen == {
        f"a {colour} {word}" for colour in ("red", "green", "blue", "white") for word in ("shape", "red thing")
    }
    assert list(terms(trainer, batch)) == [MAIN, OUTPUT]


def test_regularization_samples_are_not_preserved(made: Made, others: Path) -> None:
    trainer = made({**DOP, **BPP}, datasets=[{}, {"folder": str(others), "role": "regularization", "trigger": None}])
    assert list(terms(trainer, trainer.data.samples[0])) == [MAIN, OUTPUT, BLANK]
    assert list(terms(trainer, trainer.data.samples[1])) == [MAIN]


def test_preservation_every_few_steps(made: Made) -> None:
    trainer = made({**BPP, "preservation_every": 3})
    (batch,) = trainer.data.samples
    assert [BLANK in terms(trainer, batch[:1], step, 1) for step in range(7)] == [True, False, False] * 2 + [True]


def test_preservation_sees_the_strength_of_the_set(made: Made, record: Record) -> None:
    trainer = made(BPP, dataset={"adapter_strength": 0.5})
    calls = record(trainer)
    terms(trainer, trainer.data.samples[0])
    assert [call.strength for call in calls if call.adapted] == [0.5, 0.5]


# --- batches and accumulation ----------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    **DOP,
    **BPP,
    "differential_guidance": True,
    "contrastive_guidance": True,
    "contrastive_guidance_schedule": "sigma",
}


def test_accumulation_equals_a_batch_with_all_of_the_objective_on(made: Made, half_triggered: Path) -> None:
    """Loss, norm, weights, and every part that is told; some captions hold the trigger, some do not."""
    train = {"optimizer": "SGD", "learning_rate": 0.05, "timestep_type": "weighted", "ema_decay": 0.9}
    at_once, one_by_one = (made(EVERYTHING, dataset=of_half(half_triggered), train=train) for _ in range(2))
    for _ in range(2):
        (batch,) = at_once.data.samples
        whole = update_with(at_once, batch)
        parts = update_with(one_by_one, *([sample] for sample in batch))
        for trainer in (at_once, one_by_one):
            trainer.progress.step += 1
        assert parts[:2] == pytest.approx(whole[:2], rel=1e-4)
        one, other = at_once.experts.active.adapter.state_dict(), one_by_one.experts.active.adapter.state_dict()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
        assert parts[2] == pytest.approx(whole[2], rel=1e-4), "the parts that are told depend on how they are batched"


def test_recomputing_activations_changes_nothing_with_all_of_the_objective_on(made: Made) -> None:
    """The adapter is switched off and on and reseeded between passes: the recomputed ones must not notice."""
    results = []
    for recomputing in (False, True):
        trainer = made(
            EVERYTHING,
            dataset={"adapter_strength": 0.7},
            adapter={"dropout": 0.3},
            train={"gradient_checkpointing": recomputing, "optimizer": "SGD", "learning_rate": 0.05, "batch_size": 2},
        )
        for _ in range(2):
            told = trainer.update()
            trainer.progress.step += 1
        results.append((told, trainer.experts.active.adapter.state_dict()))
    (told, state), (told_again, state_again) = results
    assert told_again[:2] == pytest.approx(told[:2], rel=1e-5)
    assert told_again[2] == pytest.approx(told[2], rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(state_again[name], value, rtol=1e-4, atol=1e-7)
