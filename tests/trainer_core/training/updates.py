"""What a trainer makes of samples that a test chooses, and what it saves of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer_core.data.scan import Sample
    from trainer_core.runs.checkpoints import Checkpoint
    from trainer_core.training.batch_source import TrainBatch
    from trainer_core.training.loop import Trainer
    from trainer_core.training.step import Term
    from trainer_core.training.update import Made


def drawn(trainer: Trainer, samples: list[Sample], step: int = 0, seen: dict[str, int] | None = None) -> TrainBatch:
    """A micro-batch of the update `step`."""
    return trainer.batches.micro_batch(samples, step, {} if seen is None else seen)


def terms_of(
    trainer: Trainer, samples: list[Sample], step: int = 0, number: int = 0, seen: dict[str, int] | None = None
) -> Iterator[Term]:
    """The objective's terms of a micro-batch."""
    return trainer.experts.active.objective.terms(drawn(trainer, samples, step, seen), number)


def update_with(trainer: Trainer, *batches: list[Sample]) -> Made:
    """The next update, on these micro-batches."""
    seen: dict[str, int] = {}
    return trainer.updates.update_with([drawn(trainer, samples, trainer.progress.number, seen) for samples in batches])


def saved(trainer: Trainer) -> Checkpoint:
    """A checkpoint of the updates made so far."""
    trainer.save()
    checkpoint = trainer.run.latest()
    assert checkpoint is not None
    return checkpoint
