"""Changes what the objective gives, for tests of what training does with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
