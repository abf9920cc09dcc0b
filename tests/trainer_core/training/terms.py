"""Changes what the objective gives, for tests of what training does with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from trainer_core.training.batch_source import TrainBatch
from trainer_core.training.step import Objective, Term


def on_terms(monkeypatch: pytest.MonkeyPatch, change: Callable[[TrainBatch, Term], Term]) -> None:
    """Changes what the objective gives, by batch."""
    original = Objective.terms

    def terms(self: Objective, batch: TrainBatch, number: int) -> Iterator[Term]:
        for term in original(self, batch, number):
            yield change(batch, term)

    monkeypatch.setattr(Objective, "terms", terms)


def spoil(monkeypatch: pytest.MonkeyPatch, *draws: int) -> None:
    """The losses of some draws are nan."""

    def change(batch: TrainBatch, term: Term) -> Term:
        bad = batch.number in draws
        return replace(term, minimised=term.minimised * math.nan, shown=term.shown * math.nan) if bad else term

    on_terms(monkeypatch, change)
