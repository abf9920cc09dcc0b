"""What a training step takes, found without its weights: the real objective and the real models on fake tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..adapters.adapter import Adapter
from ..adapters.operations import layers_of
from ..training.step import Objective
from ..training.update import Updater
from .blocks import blocks_of
from .imitation import bytes_of, imitating
from .settings import MemorySettings
from .tracker import ACTIVATIONS, Tracker

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..families.base import Base
    from ..training.batch_source import TrainBatch

WEIGHTS, LORA, GRADIENTS, OPTIMIZER, AVERAGE = "weights", "LoRA", "gradients", "optimizer", "moving average"
"""Kinds of memory, beside ACTIVATIONS."""
_PROBE = (64, 128)
"""Shape of the matrix that tells how much state an optimizer keeps for each number; 8-bit ones begin at 4096."""
_SHORTEST = 2
"""How many of a list of like blocks are run at least."""


@dataclass(frozen=True)
class Use:
    """What a step takes: bytes by kind at its peak, and FLOPs."""

    memory: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    inputs: float = 0.0
    """Bytes of activations that the long lists of blocks add, one block after the other."""

    @property
    def peak(self) -> float:
        """Bytes."""
        return sum(self.memory.values())

    def plus(self, other: Use, times: float = 1.0) -> Use:
        """The sum with some times another."""
        kinds = {**self.memory, **other.memory}
        memory = {kind: self.memory.get(kind, 0) + times * other.memory.get(kind, 0) for kind in kinds}
        return Use(memory, self.flops + times * other.flops, self.inputs + times * other.inputs)


@dataclass(frozen=True)
class Outline:
    """A denoiser's weights."""

    blocks: list[int]
    """Bytes of each block, in the order of computing."""
    total: int
    """Bytes, of all."""
    linear: int
    """Numbers in the blocks' linear layers."""
    largest: int
    """Numbers in the largest of them."""
    lists: dict[str, int]
    """The lists of blocks whose members are all alike, by path, and their lengths."""


def outline_of(base: Base, expert: str = "") -> Outline:
    """The outline of a base's denoiser; `base` as `Base.imitated` gives it."""
    with imitating():
        denoiser = base.load_denoiser(expert)
        blocks = blocks_of(denoiser).values()
        sizes = [
            math.prod(one.weight_shape) for block in blocks for _, one in layers_of(block).values() if not one.kernel
        ]
        return Outline(
            [*map(bytes_of, blocks)], bytes_of(denoiser), sum(sizes), max(sizes, default=0), like_blocks(denoiser)
        )


def step_use(
    job: JobConfig,
    base: Base,
    batches: Sequence[TrainBatch],
    settings: MemorySettings,
    outline: Outline,
    expert: str = "",
) -> Use:
    """A step of a job on one expert: forward and backward pass of all its loss terms, after the first update.

    Lists of like blocks are run shortened, and what more of them take is added: it is the same for each.

    Args:
        base: as `Base.imitated` gives it.
        batches: the micro-batches of an update.
        settings: what streams is not looked at.
    """
    step = settings.every if settings.recompute else 1
    lists = {path: length for path, length in outline.lists.items() if length >= _SHORTEST + 2 * step}
    short = {path: _SHORTEST + (length - _SHORTEST) % step for path, length in lists.items()}
    found = whole = _run(job, base, batches, settings, expert, short)
    for path, length in lists.items():
        longer = _run(job, base, batches, settings, expert, short | {path: short[path] + step})
        more = longer.plus(found, -1)
        whole = whole.plus(replace(more, inputs=more.memory[ACTIVATIONS]), (length - short[path]) // step)
    return whole


def like_blocks(denoiser: nn.Module) -> dict[str, int]:
    """The lists of a model's blocks whose members are all alike: path → length."""
    blocks = blocks_of(denoiser)
    found = {}
    for path in sorted({path.rpartition(".")[0] for path in blocks}):
        members = denoiser.get_submodule(path)
        if isinstance(members, nn.ModuleList) and {*blocks.values()}.issuperset(members):
            shapes = {str([(name, one.shape) for name, one in member.named_parameters()]) for member in members}
            if len(shapes) == 1:
                found[path] = len(members)
    return found


def _run(
    job: JobConfig,
    base: Base,
    batches: Sequence[TrainBatch],
    settings: MemorySettings,
    expert: str,
    lengths: dict[str, int],
) -> Use:
    if job.adapter.text_encoders:
        with imitating():
            base.load_text_encoders()
    with imitating(lengths):
        denoiser = base.load_denoiser(expert).train()
        adapter = Adapter.of(job, base, denoiser)
        base.recompute_blocks(denoiser, settings)
        updater = Updater(job, Objective(job, base, denoiser, adapter), adapter, lambda _: None)
        updater.differentiate(batches[:1])  # what is found out once, such as which products nothing reads
        with Tracker() as tracker:
            for root in adapter.roots.values():
                tracker.name(WEIGHTS, (*root.parameters(), *root.buffers()))
            tracker.name(LORA, adapter.parameters())
            tracker.name(GRADIENTS, [flat.gradient for flat in updater.flats])
            tracker.name(AVERAGE, updater.ema.averages if updater.ema else ())
            tracker.start_over()
            updater.differentiate(batches)
        count = sum(one.numel() for one in adapter.parameters())
    return Use({**tracker.at_peak, OPTIMIZER: state_per_weight(job) * count}, tracker.flops)


def state_per_weight(job: JobConfig) -> float:
    """Bytes that the job's optimizer keeps for each trained number after its first step."""
    from ..training.optimizers import make_optimizer

    probe = nn.Parameter(torch.ones(_PROBE))
    probe.grad = torch.ones_like(probe)
    optimizer = make_optimizer([probe], job.train)
    optimizer.step()
    state = [one for values in optimizer.state.values() for one in values.values() if isinstance(one, torch.Tensor)]
    return sum(one.nbytes for one in state if one.numel() > 1) / probe.numel()
