"""Changes what the objective gives, for tests of what training does with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from trainer_core.data.scan import Sample
from trainer_core.training.step import Objective, Term


def on_terms(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Sample], int, Term], Term]) -> None:
    """Changes what the objective gives, by batch and draw."""
    original = Objective.terms

    def terms(self: Objective, batch: list[Sample], step: int, number: int, seen: dict[str, int]) -> Iterator[Term]:
        for term in original(self, batch, step, number, seen):
            yield change(batch, step, term)

    monkeypatch.setattr(Objective, "terms", terms)
