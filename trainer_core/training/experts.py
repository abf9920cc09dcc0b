"""The experts of a run: for each part of the noise levels a denoiser, its adapter, and what trains it.

Most models have one. Where there are several, one is on the device at a time, and an update changes one alone: its
optimizer, its moving average and its clipping know nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from ..adapters.adapter import Adapter
from ..errors import ConfigError
from ..families.device import release_memory
from ..memory.blocks import blocks_of
from ..memory.compiled import compile_blocks
from ..memory.copier import Copier, copier_for
from ..memory.recompute import keep_blocks
from ..memory.settings import MemorySettings
from ..memory.streaming import Streamed, streamed_blocks
from ..objective.timesteps import NoiseStages
from ..runs.events import Listener, Warning
from .parallel import ALONE, Ranks
from .step import Objective
from .update import Updater

if TYPE_CHECKING:
    import torch

    from ..config import JobConfig
    from ..families.base import Base, FamilySpec


@dataclass(frozen=True)
class Expert:
    """One of them."""

    name: str
    """Ends its LoRA file's name; empty where there is only one."""
    denoiser: nn.Module
    adapter: Adapter
    objective: Objective
    updater: Updater
    streamed: Streamed | None = None

    @property
    def lora_file(self) -> str:
        """The name of its LoRA file."""
        return f"lora_{self.name}.safetensors" if self.name else "lora.safetensors"


class Experts:
    """All experts that a job trains, the noisiest first."""

    def __init__(
        self, job: JobConfig, base: Base, emit: Listener, memory: MemorySettings | None = None, ranks: Ranks = ALONE
    ) -> None:
        """Loads the denoisers and adapts them; text encoders that are to be adapted are loaded already.

        Args:
            memory: how memory is spent; if not told, as the job says.
        """
        self._base, self._active = base, 0
        self._all: list[Expert] = []
        self.stages = stages_of(job, base.spec)
        memory = memory or MemorySettings.of(job)
        self._emit = emit
        copier = self._copier(memory, emit)
        for number, spec in enumerate(base.spec.experts):
            load = base.load_denoiser_on_host if copier else base.load_denoiser
            denoiser = load(spec.name).train()
            adapter = Adapter.of(job, base, denoiser)
            if job.memory.compile:
                compile_blocks(blocks_of(denoiser).values(), emit, base.changes_inputs)
            streamed = streamed_blocks(denoiser, memory, copier) if copier else None
            if streamed:
                self._move(denoiser, adapter, base.device)
            base.recompute_blocks(denoiser, memory)
            objective = Objective(job, base, denoiser, adapter)
            updater = Updater(job, objective, adapter, emit, ranks)
            self._all.append(Expert(spec.name, denoiser, adapter, objective, updater, streamed))
            if number:
                self._put_away(self._all[number])

    def __iter__(self) -> Iterator[Expert]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def active(self) -> Expert:
        """The one that is on the device."""
        return self._all[self._active]

    def of_update(self, number: int) -> Expert:
        """The one that update `number` trains, brought to the device."""
        return self._bring(self.stages.stage(number) if len(self._all) > 1 else 0)

    def at(self, t: float) -> Expert:
        """The one for a time, brought to the device."""
        return self._bring(self._base.spec.expert_at(t))

    def name_at(self, t: float) -> str:
        """The name of the one for a time."""
        return self._all[self._base.spec.expert_at(t)].name

    def read_late(self) -> bool:
        """Whether an update need not be waited for: a GPU works on its own, unless experts come and go, or the scale of
        float16 follows from what became of the last update."""
        return self._base.device.type == "cuda" and len(self) == 1 and self.active.updater.scale is None

    def _bring(self, number: int) -> Expert:
        if number != self._active:
            self._put_away(self.active)
            self._active = number
            self._put(self.active, self._base.device)
        return self.active

    def _put_away(self, expert: Expert) -> None:
        """Makes room for another one."""
        self._put(expert, "cpu")
        release_memory(self._base.device)

    def _put(self, expert: Expert, device: torch.device | str) -> None:
        if expert.streamed:
            expert.streamed.unload()
        self._move(expert.denoiser, expert.adapter, device)

    def _move(self, denoiser: nn.Module, adapter: Adapter, device: torch.device | str) -> None:
        self._base.bring(denoiser, device)
        for flat in adapter.flats():
            flat.follow()

    def _copier(self, memory: MemorySettings, emit: Listener) -> Copier | None:
        """What copies the weights of streamed blocks; None if there are none.

        Raises:
            ConfigError: if blocks are to be streamed and not recomputed.
        """
        if not memory.streams:
            return None
        if not memory.recompute:
            raise ConfigError(
                "memory.layer_offloading: blocks whose weights are streamed are computed again in the backward pass. "
                "Switch on train.gradient_checkpointing, or set memory.layer_offloading to 0"
            )
        copier = copier_for(self._base.device)
        if copier is None:
            emit(Warning("memory.layer_offloading does nothing on this device: it computes in the computer's memory"))
        return copier

    def spend(self, memory: MemorySettings) -> None:
        """Spends memory in another way from now on, between two passes; gradients stay as they are."""
        copier = self._copier(memory, self._emit)
        for number, one in enumerate(self._all):
            keep_blocks(blocks_of(one.denoiser).values())
            if one.streamed:
                one.streamed.choose(memory.streamed)
            elif copier:
                self._all[number] = replace(one, streamed=streamed_blocks(one.denoiser, memory, copier))
            self._base.recompute_blocks(one.denoiser, memory)
        release_memory(self._base.device)

    # raw or averaged weights

    def which(self, choice: str) -> str:
        """The weights that `auto`, `raw` or `ema` stands for."""
        return ("raw" if self.active.updater.ema is None else "ema") if choice == "auto" else choice

    @contextmanager
    def weights(self, choice: str) -> Iterator[None]:
        """Puts the chosen weights into the adapters for a while."""
        with ExitStack() as stack:
            for one in self._all if self.which(choice) == "ema" else ():
                if one.updater.ema is not None:
                    stack.enter_context(one.updater.ema.applied())
            yield

    @contextmanager
    def evaluating(self, weights: str) -> Iterator[None]:
        """For previews and measurements: the chosen weights at strength 1, without dropout of any kind.

        No bit of them depends on what was computed before: a run that was just resumed gives the same.
        """
        for one in self._all:
            one.denoiser.eval()
            one.adapter.set_strength(1.0)
            one.adapter.seed_dropout()  # none
        try:
            with ExitStack() as apart, self.weights(weights):
                for one in self._all:
                    apart.enter_context(one.adapter.apart())
                yield
        finally:
            for one in self._all:
                one.denoiser.train()


def stages_of(job: JobConfig, spec: FamilySpec) -> NoiseStages:
    """How a job's updates are split by noise level: by the family's experts, or else as the job says.

    Raises:
        ConfigError: if it chooses a stage where there is only one, or trains none of the times of one.
    """
    train = job.train
    boundaries: Sequence[float] = [one.low for one in spec.experts[:-1]] or train.stage_boundaries
    if train.stages != "all" and not boundaries:
        raise ConfigError("train.stages: there is only one stage without stage_boundaries")
    stages = NoiseStages(tuple(boundaries), train.stages, train.stage_switch_every)
    for trained in {stages.stage(k * train.stage_switch_every) for k in range(len(boundaries) + 1)}:
        low, high = stages.limits(trained)
        if max(low, train.timestep_min) >= min(high, train.timestep_max):
            raise ConfigError(
                f"train.stages: timestep_min and timestep_max leave no times to the stage from {low:g} to {high:g}. "
                "Choose the other stages alone, or leave them room"
            )
    return stages
