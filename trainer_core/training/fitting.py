"""How a run fits into memory: what it begins with, and what it goes on with when that turns out to be wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..data.cache import CacheMiss
from ..errors import first_line
from ..families.device import free_memory
from ..memory.settings import MemorySettings
from ..runs.events import MemoryPlanned, Warning
from ..units import GB, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import JobConfig
    from ..data.prepare import PreparedData
    from ..families.base import Base
    from ..memory.plan import Plan, Row
    from ..runs.events import Listener
    from .batch_source import TrainBatch

_UNPLANNED = (MemorySettings(recompute=False), MemorySettings(every=2), MemorySettings())
"""What small models go through without a plan, the fastest first."""
_TEXT_TOKENS = 512
"""Of texts that are encoded anew in each step."""
_CLOSE = 0.05
"""A prediction that is off by less is right."""


class Fitting:
    """Chooses a run's `settings`, and others when memory is short or there is more of it than was predicted."""

    def __init__(self, job: JobConfig, base: Base, data: PreparedData, emit: Listener) -> None:
        """Plans by the largest batch that there is; small models, for which any setting does, are not planned."""
        self._job, self._base, self._emit = job, base, emit
        self.settings = MemorySettings.of(job)
        self.plan: Plan | None = None
        self.automatic = job.memory.plan == "auto"
        self.budget = free_memory(base.device) if job.memory.limit_gb is None else job.memory.limit_gb * GB
        if not self.automatic:
            return
        if not job.train.gradient_checkpointing:
            self.settings = _UNPLANNED[0]
            return
        try:
            batches = largest(job, base, data)
        except CacheMiss:
            return  # it is encoded anew, and the safe setting does
        if rough_bound(base, batches) <= self.budget / 2:
            self.settings = _UNPLANNED[0]
            return
        try:
            self.plan = plan_of(job, base, batches)
            row = self.plan.chosen(self.budget)
            if row is None:
                row = self.plan.tightest()
                emit(Warning(too_large(row, self.budget)))
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, AssertionError) as error:
            self.plan = None
            emit(Warning(f"memory is not planned, as this model cannot be imitated ({first_line(error)})"))
            return
        self.settings = row.settings
        emit(MemoryPlanned(told(row, self.budget)))

    @property
    def row(self) -> Row | None:
        """What is predicted of the settings."""
        return self.plan.row(self.settings) if self.plan else None

    def tighter(self) -> MemorySettings | None:
        """The next setting, when memory was not enough for this one; None if there is none."""
        if not self.automatic or not self._job.train.gradient_checkpointing:
            return None
        if self.plan is None:
            rest = _UNPLANNED[_UNPLANNED.index(self.settings) + 1 :] if self.settings in _UNPLANNED else ()
            found = next(iter(rest), None)
        else:
            row = self.plan.tighter(self.plan.row(self.settings))
            found = row.settings if row else None
        self.settings = found or self.settings
        return found

    def corrected(self, measured: int) -> MemorySettings | None:
        """Compares the plan with what the first steps took, in bytes; gives other settings if these do not fit as well
        as was thought, or faster ones do.
        """
        if self.plan is None:
            return None
        row = self.plan.row(self.settings)
        text = f"memory: {size(row.peak)} predicted, {size(measured)} measured"
        if abs(measured / row.peak - 1) < _CLOSE:
            self._emit(MemoryPlanned(text))
            return None
        self.plan.correct(row, measured)
        better = self.plan.chosen(self.budget) or self.plan.tightest()
        if better.settings == self.settings:
            self._emit(MemoryPlanned(text))
            return None
        self._emit(MemoryPlanned(f"{text}; from now on {better.label}"))
        self.settings = better.settings
        return better.settings


def largest(job: JobConfig, base: Base, data: PreparedData) -> list[TrainBatch]:
    """The largest micro-batches of a job (`memory.inputs`)."""
    from ..memory.inputs import largest_batches

    return largest_batches(job, base, data)


def plan_of(job: JobConfig, base: Base, batches: Sequence[TrainBatch]) -> Plan:
    """The plan of a job with its largest batches; each setting is imitated when it is asked for."""
    from ..memory.cost import measured
    from ..memory.plan import Plan
    from ..memory.prediction import outline_of, step_use

    twin, expert = base.imitated(), base.spec.experts[0].name
    outline = outline_of(twin, expert)
    return Plan(
        lambda settings: step_use(job, twin, batches, settings, outline, expert),
        outline,
        measured(base.device),
        may_stream=base.device.type == "cuda",
    )


def rough_bound(base: Base, batches: Sequence[TrainBatch]) -> float:
    """More bytes than a step takes that keeps everything, by the widths of the layers alone."""
    from ..adapters.operations import layers_of

    layers = [one for _, one in layers_of(base.outline(base.spec.experts[0].name)).values()]
    width = sum(one.inputs + one.outputs for one in layers)
    weights = sum(math.prod(one.weight_shape) for one in layers)
    batch = batches[0]
    cells = sum(math.prod(one.shape[2:]) for one in batch.clean.values())
    given = batch.captioned[0]
    texts = [one.shape[-2] for one in (given.text or {}).values() if one.dim() > 1]
    controls = sum(math.prod(one.shape[1:]) for one in given.controls)
    tokens = len(batch) * (cells + controls + max(texts, default=_TEXT_TOKENS))
    return 4.0 * (2 * weights + 4 * tokens * width)


def told(row: Row, budget: float) -> str:
    """A setting in one line, before training begins."""
    slower = "" if row.time < 1.005 else f", {row.time:.2f} times the step without"
    return f"memory: {row.label}; about {size(row.peak)} of {size(budget)}{slower}"


def too_large(row: Row, budget: float) -> str:
    """What to do where nothing fits."""
    return (
        f"memory: even with {row.label} a step takes about {size(row.peak)}, and there are {size(budget)}. "
        "Choose lower bits (model.quantization), smaller datasets.resolutions or a smaller train.batch_size"
    )
