"""How a run's memory is spent: what of the denoiser is kept, computed again, or brought when it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import JobConfig


@dataclass(frozen=True)
class MemorySettings:
    """What a job's memory settings come to. All choices give the same gradients, bit for bit."""

    recompute: bool = True
    """Blocks are computed again in the backward pass (gradient checkpointing)."""
    every: int = 1
    """Only each n-th block is."""
    keep_attention: bool = False
    """Recomputed blocks keep what their attention gave."""
    offload_inputs: bool = False
    """The inputs of recomputed blocks wait in host memory."""
    streamed: int = 0
    """Number of blocks whose weights are copied to the device when they are needed."""
    layer_offloading: float = 0.0
    """The same as a share of all blocks, where no plan has counted them."""

    @property
    def streams(self) -> bool:
        """Whether there are such blocks."""
        return bool(self.streamed or self.layer_offloading)

    def streamed_of(self, blocks: int) -> int:
        """How many of a denoiser's blocks that is."""
        return self.streamed or round(self.layer_offloading * blocks)

    @classmethod
    def of(cls, job: JobConfig) -> MemorySettings:
        """As a job says."""
        recompute, memory = job.train.gradient_checkpointing, job.memory
        if memory.plan != "manual":
            return cls(recompute)
        every, layer_offloading = memory.checkpoint_every, memory.layer_offloading
        return cls(recompute, every, memory.keep_attention, memory.offload_inputs, layer_offloading=layer_offloading)


def label(settings: MemorySettings) -> str:
    """Settings in the words that users know."""
    if not settings.recompute:
        return "no gradient checkpointing"
    ordinal = {2: "2nd", 3: "3rd"}.get(settings.every, f"{settings.every}th")
    parts = ["gradient checkpointing" + ("" if settings.every == 1 else f" of every {ordinal} block")]
    parts += ["attention outputs kept"] * settings.keep_attention
    parts += ["block inputs in host memory"] * settings.offload_inputs
    parts += [f"layer offloading of {settings.streamed} blocks"] * bool(settings.streamed)
    return ", ".join(parts)
