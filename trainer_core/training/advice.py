"""What a user should hear: settings that work and are most likely a mistake, and what to do when memory is short."""

from __future__ import annotations

from ..config import JobConfig

_LEAST_FOR_PRODIGY = 0.1
_SMALL_PICTURE = 512
_SMALL_RANK = 8


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
    if job.model.dtype == "float16":
        found.append(
            "model.dtype is float16, whose range is small: bases made in bfloat16 (FLUX.1) may overflow in it, and "
            "such batches are passed over (train.skip_limit). Where the GPU has bfloat16, or memory allows float32, "
            "take that"
        )
    return found


def out_of_memory(job: JobConfig) -> str:
    """What to do when memory is not enough: what of it this job has not done yet, cheapest first."""
    largest = max(max(dataset.resolutions) for dataset in job.datasets)
    ways = []
    if not job.train.gradient_checkpointing:
        ways.append("switch on train.gradient_checkpointing")
    if job.train.batch_size > 1:
        ways.append("lower train.batch_size and raise gradient_accumulation by as much")
    if largest > _SMALL_PICTURE:
        ways.append(f"leave out the largest of datasets.resolutions ({largest})")
    if job.adapter.rank > _SMALL_RANK:
        ways.append(f"lower adapter.rank ({job.adapter.rank})")
    if job.model.dtype == "float32":
        ways.append("set model.dtype to bfloat16")
    ways.append("close what else uses this device")
    return (
        f"memory is not enough. In this order: {', '.join(ways)}. Latents and text embeddings are cached already, so "
        "encoders take no memory while training; what was saved is intact"
    )
