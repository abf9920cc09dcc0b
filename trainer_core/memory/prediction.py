"""What a training step takes, found without its weights: the real objective and the real models on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..adapters.adapter import Adapter
from ..training.step import Objective
from ..training.update import Updater
from .blocks import blocks_of
from .imitation import imitating, on_real_tensors
from .settings import MemorySettings
from .tracker import Tracker

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..families.base import Base
    from ..training.batch_source import TrainBatch

WEIGHTS, LORA, GRADIENTS, OPTIMIZER, AVERAGE = "weights", "LoRA", "gradients", "optimizer", "moving average"
"""Kinds of memory, beside ACTIVATIONS."""
_PROBE = (64, 128)
"""Shape of the matrix that tells how much state an optimizer keeps for each number; 8-bit ones begin at 4096."""
_SHORTEST = 4
"""Length of a list of like blocks from which a part of it tells all."""


@dataclass(frozen=True)
class Use:
    """What a pass of a kind takes, in bytes by kind at its peak, and in FLOPs."""

    memory: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0

    @property
    def peak(self) -> float:
        """Bytes."""
        return sum(self.memory.values())

    def plus(self, other: Use, times: float = 1.0) -> Use:
        """The sum with some times another."""
        kinds = {**self.memory, **other.memory}
        memory = {kind: self.memory.get(kind, 0) + times * other.memory.get(kind, 0) for kind in kinds}
        return Use(memory, self.flops + times * other.flops)


def step_use(
    job: JobConfig, base: Base, batches: Sequence[TrainBatch], settings: MemorySettings, expert: str = ""
) -> Use:
    """A step of a job on one expert: forward and backward pass of all its loss terms, after the first update.

    Lists of like blocks are run shortened and what one more block takes is added for those left out: a step is the same
    for each of them, so that the sum is exact.

    Args:
        base: as `Base.imitated` gives it.
        batches: the micro-batches of an update.
    """
    with imitating():
        lengths = {path: len(one) for path, one in like_blocks(base.load_denoiser(expert)).items()}
        short = dict.fromkeys(lengths, _SHORTEST - 1)
        found = whole = _run(job, base, batches, settings, expert, short)
        for path, length in lengths.items():
            longer = _run(job, base, batches, settings, expert, short | {path: _SHORTEST})
            whole = whole.plus(longer.plus(found, -1), length - short[path])
    return whole


def like_blocks(denoiser: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of a model's blocks, by path, that are long and whose members are all alike."""
    paths = {path.rpartition(".")[0] for path in blocks_of(denoiser)}
    blocks = {*blocks_of(denoiser).values()}
    found = {}
    for path in sorted(paths):
        members = denoiser.get_submodule(path)
        if isinstance(members, nn.ModuleList) and len(members) >= _SHORTEST and blocks.issuperset(members):
            shapes = {str([(name, one.shape) for name, one in member.named_parameters()]) for member in members}
            if len(shapes) == 1:
                found[path] = members
    return found


def _run(
    job: JobConfig,
    base: Base,
    batches: Sequence[TrainBatch],
    settings: MemorySettings,
    expert: str,
    lengths: dict[str, int],
) -> Use:
    denoiser = base.load_denoiser(expert).train()
    for path, length in lengths.items():
        del denoiser.get_submodule(path)[length:]  # type: ignore[operator]
    adapter = Adapter.of(job, base, denoiser)
    if settings.recompute:
        base.recompute_blocks(denoiser, settings)
    updater = Updater(job, Objective(job, base, denoiser, adapter), adapter, lambda _: None)
    with Tracker() as tracker:
        tracker.name(LORA, adapter.parameters())
        for root in adapter.roots.values():
            tracker.name(WEIGHTS, (*root.parameters(), *root.buffers()))
        tracker.name(AVERAGE, updater.ema.averages if updater.ema else ())
        tracker.start_over()
        updater._gradients(batches, 1.0)  # noqa: SLF001 # without what would wait for numbers
    memory = dict(tracker.at_peak)
    trained = sum(one.numel() for one in adapter.parameters())
    memory[OPTIMIZER] = state_per_weight(job) * trained
    return Use(memory, tracker.flops)


def state_per_weight(job: JobConfig) -> float:
    """Bytes that the job's optimizer keeps for each trained number after its first step."""
    from ..training.optimizers import make_optimizer

    with on_real_tensors():
        probe = nn.Parameter(torch.ones(_PROBE))
        probe.grad = torch.ones_like(probe)
        optimizer = make_optimizer([probe], job.train)
        optimizer.step()
    state = [one for values in optimizer.state.values() for one in values.values() if isinstance(one, torch.Tensor)]
    return sum(one.nbytes for one in state if one.numel() > 1) / probe.numel()
