"""Settings to start from, for what is learned (a character, a style, an object) and for the GPU's memory.

A preset is a list of changes to a job's defaults, each with its reason, so that a user can read it and disagree with a
line. Nothing here names a family: what a base needs is asked of its `FamilySpec`. The figures are those of the guides
that this project started from: ranks 8 to 32, a learning rate of 1e-4, 2000 to 3000 steps for 20 to 50 pictures of a
character and half of that for a style, noise levels by what is learned, and, when memory is short, smaller buckets
before lower ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .families.base import FamilySpec

Subject = Literal["character", "style", "object"]
SUBJECTS: tuple[Subject, ...] = ("character", "style", "object")
VRAM_GB = (8, 12, 16, 24)
"""Sizes of GPU memory that there are presets for."""

_SMALLEST_EDGE = 512
"""Bases learn little from smaller pictures."""
_GRID = 64
"""Resolutions are multiples of this, as people write them."""


@dataclass(frozen=True)
class Change:
    """One setting of a preset."""

    part: str
    """`adapter`, `dataset`, `train`, `save` or `sample`."""
    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class _Taste:
    """What a subject wants, whatever the memory."""

    rank: int
    steps: int
    timestep_type: str
    ranks_reason: str
    steps_reason: str
    noise_reason: str


_TASTES: dict[str, _Taste] = {
    "character": _Taste(
        rank=32,
        steps=2500,
        timestep_type="sigmoid",
        ranks_reason="a face needs more detail than a style; more than 32 learns the backgrounds as well",
        steps_reason="enough for 20 to 50 pictures; look at the samples, an earlier checkpoint may be the best",
        noise_reason="most steps at medium noise, where faces are decided; composition and texture stay the base's",
    ),
    "style": _Taste(
        rank=16,
        steps=1500,
        timestep_type="linear",
        ranks_reason="a style is little to learn, and a small LoRA does not learn what the pictures show",
        steps_reason="enough for 15 to 30 pictures; more steps draw the style into pictures without the trigger",
        noise_reason="all noise levels alike: a style is composition as well as texture",
    ),
    "object": _Taste(
        rank=32,
        steps=2000,
        timestep_type="weighted",
        ranks_reason="shape, lettering and material have to be exact",
        steps_reason="enough for 15 to 40 pictures from all sides",
        noise_reason="all noise levels, for the shape and the material; those that teach most count more",
    ),
}


def preset(subject: Subject, vram_gb: float, spec: FamilySpec) -> tuple[Change, ...]:
    """What to change in a job.

    Args:
        vram_gb: the GPU's memory in GB; more than 0.
        spec: the family that is trained.
    """
    taste, room = _TASTES[subject], vram_gb / least_vram(spec)
    edge = max(spec.sampling.width, spec.sampling.height)
    rank, rank_reason = taste.rank, taste.ranks_reason
    if room < 1:
        rank, rank_reason = rank // 2, f"half of the usual {rank}, because memory is short"
    batch, batch_reason, sum_reason = 2, "there is memory for two pictures at once", "batches of two need none"
    if room < 2:
        batch, batch_reason = 1, "more pictures at once need more memory"
        sum_reason = "two pictures a step are steadier than one, at no memory"
    tight = "far less memory for about a third more time"
    roomy = "there is memory to do without, which is a third faster"
    changes = [
        Change("adapter", "rank", rank, rank_reason),
        Change("dataset", "resolutions", *_resolution(edge, room)),
        Change("train", "steps", taste.steps, taste.steps_reason),
        Change("train", "learning_rate", 1e-4, "safe and well tried; half of it if the samples fall apart early"),
        Change("train", "batch_size", batch, batch_reason),
        Change("train", "gradient_accumulation", 2 // batch, sum_reason),
        Change("train", "timestep_type", taste.timestep_type, taste.noise_reason),
        Change("train", "gradient_checkpointing", room < 3, tight if room < 3 else roomy),
        Change("save", "every", 250, "often enough to go back to a checkpoint from before the LoRA learned too much"),
        Change("sample", "every", 250, "as often as it is saved, so that each checkpoint has its samples"),
    ]
    if subject == "style":
        dropped = "a tenth of the pictures with the trigger alone binds the style to it, and not to what is described"
        changes.append(Change("dataset", "caption_dropout", 0.1, dropped))
        if spec.conv_targets and room >= 1:
            changes.append(Change("adapter", "conv_rank", 8, "convolutions hold texture: strokes, grain, line"))
    else:
        mirrored = "faces are not symmetric" if subject == "character" else "lettering must not be mirrored"
        changes.append(Change("dataset", "flip_x", False, mirrored))
    return tuple(changes)


def warning(vram_gb: float, spec: FamilySpec) -> str | None:
    """What a user should know who has less memory than a family needs."""
    if vram_gb >= least_vram(spec):
        return None
    return (
        f"{spec.title} needs {spec.vram_gb}: with {vram_gb:g} GB it may not fit even with these settings. If it does "
        "not, choose a smaller base"
    )


def least_vram(spec: FamilySpec) -> float:
    """GB of memory that a family's training starts at: the first number of its guidance."""
    found = re.search(r"\d+(\.\d+)?", spec.vram_gb)
    return float(found[0]) if found else min(VRAM_GB)


def by_part(changes: Iterable[Change]) -> dict[str, dict[str, Any]]:
    """Part of the job → field → value."""
    parts: dict[str, dict[str, Any]] = {}
    for change in changes:
        parts.setdefault(change.part, {})[change.field] = change.value
    return parts


def _resolution(edge: int, room: float) -> tuple[tuple[int], str]:
    share = 1.0 if room >= 1.3 else 0.75 if room >= 1 else 0.5
    wanted = max(min(edge, _SMALLEST_EDGE), int(edge * share) // _GRID * _GRID)
    reason = f"smaller than the base's own {edge}: the first thing to save memory with, and the LoRA works at both"
    return (wanted,), "the size that the base was made for" if wanted == edge else reason
