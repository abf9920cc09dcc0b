"""Settings that work and are most likely a mistake: a run says so and goes on."""

from __future__ import annotations

from ..config import JobConfig

_LEAST_FOR_PRODIGY = 0.1


def advice(job: JobConfig) -> list[str]:
    """What a user should know about a job, one sentence or two for each finding."""
    found = []
    rate = job.train.learning_rate
    if job.train.optimizer == "prodigy" and rate < _LEAST_FOR_PRODIGY:
        found.append(
            f"train.learning_rate is {rate:g}: prodigy multiplies it by its own estimate and hardly learns. Set it to 1"
        )
    blanks = [
        dataset.folder
        for dataset in job.datasets
        if dataset.role == "train"
        and dataset.caption_dropout > 0
        and (dataset.dropped_caption == "blank" or dataset.trigger is None)
    ]
    if job.regularization.blank_preservation and blanks:
        found.append(
            "regularization.blank_preservation keeps the empty prompt as it is, while caption_dropout trains it: set "
            "dropped_caption to trigger (with a trigger), or caption_dropout to 0"
        )
    return found
