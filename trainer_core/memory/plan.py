"""The memory plan: what a job takes under each setting, and the fastest one that fits. None changes a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..units import GB
from .cost import Rates, relative_time
from .settings import MemorySettings, label

if TYPE_CHECKING:
    from .prediction import Outline, Use

ROOM = 1.03
"""For what allocators lose between pieces of memory."""
CONTEXT = 0.7 * GB
"""What a GPU's driver and libraries take of a card's memory before anything is on it."""
KEEPS = MemorySettings(recompute=False)
"""The fastest."""
_STRIDES = (4, 2)
_UNPACKED = 3
"""Bytes for each weight of a packed layer while it computes: in half precision, and what it is made of."""
_RING = 2
"""Buffers on the device for blocks that are streamed, and inputs of blocks on their way."""


@dataclass(frozen=True)
class Row:
    """A job under one setting."""

    settings: MemorySettings
    memory: dict[str, float]
    """Bytes on the device at the peak of a step, by kind."""
    time: float
    """Of a step, as a multiple of that of one that keeps everything."""
    host: float = 0.0
    """Bytes of it that are in host memory instead."""

    @property
    def peak(self) -> float:
        """Bytes on the device."""
        return sum(self.memory.values())

    def fits(self, budget: float) -> bool:
        """Whether so many bytes are enough."""
        return self.peak * ROOM <= budget

    @property
    def label(self) -> str:
        """The setting in words."""
        return label(self.settings)


class Plan:
    """All settings of a job. What one takes is found out when it is asked for."""

    def __init__(
        self,
        use: Callable[[MemorySettings], Use],
        outline: Outline,
        rates: Rates = Rates(),  # noqa: B008 - frozen
        *,
        may_recompute: bool = True,
        may_stream: bool = True,
    ) -> None:
        """
        Args:
            use: what a step takes under a setting that streams nothing.
            may_stream: whether the device's memory is another than the host's.
        """
        self._use, self._ran, self._rates = use, outline, rates
        self.outline = outline
        """Another one in its place is the same model held in other bits."""
        self._may_recompute, self._may_stream = may_recompute, may_recompute and may_stream
        self._known: dict[MemorySettings, Use] = {}
        self.factor = 1.0
        """Of activations measured to those predicted."""

    def row(self, settings: MemorySettings) -> Row:
        """The job under a setting."""
        from .prediction import WEIGHTS
        from .streaming import evenly_spread
        from .tracker import ACTIVATIONS

        plain = replace(settings, streamed=0, offload_inputs=False)
        for one in (plain, KEEPS, *[MemorySettings()] * settings.offload_inputs):
            if one not in self._known:
                self._known[one] = self._use(one)
        found, kept = self._known[plain], self._known[KEEPS]
        memory = {**found.memory, ACTIVATIONS: found.memory[ACTIVATIONS] * self.factor}
        if self.outline is not self._ran:
            memory[WEIGHTS] += self.outline.total - self._ran.total
            memory[ACTIVATIONS] += _UNPACKED * self.outline.largest
        blocks = self.outline.blocks
        streamed = (
            [blocks[place] for place in evenly_spread(settings.streamed, len(blocks))] if settings.streamed else []
        )
        memory[WEIGHTS] -= sum(streamed) - min(_RING, len(streamed)) * max(streamed, default=0)
        inputs = self._known[MemorySettings()].inputs if settings.offload_inputs else 0.0
        moved = inputs * max(0.0, 1 - _RING / len(blocks))
        memory[ACTIVATIONS] -= moved * self.factor
        time = relative_time(kept.flops, found.flops, sum(streamed), moved, self._rates)
        return Row(settings, memory, time, sum(streamed) + moved)

    def rows(self) -> Iterator[Row]:
        """What is told in a table: the fastest first, each with less memory than those before."""
        yield self.row(KEEPS)
        if not self._may_recompute:
            return
        full = MemorySettings()
        for settings in (
            *(replace(full, every=stride) for stride in _STRIDES),
            replace(full, keep_attention=True),
            full,
        ):
            yield self.row(settings)
        if not self._may_stream:
            return
        count = len(self.outline.blocks)
        shares = sorted({math.ceil(count * quarter / 4) for quarter in range(1, 5)} - {0})
        for offloads in (False, True):
            for streamed in shares if not offloads else (0, *shares):
                yield self.row(replace(full, streamed=streamed, offload_inputs=offloads))

    def chosen(self, budget: float) -> Row | None:
        """The fastest setting that fits into so many bytes; None if none does."""
        full = MemorySettings()
        for row in self.rows():
            if row.settings.streamed or row.settings.offload_inputs:
                break
            if row.fits(budget):
                return row
        if not self._may_stream:
            return None
        rows = [
            found
            for keeps in (True, False)
            for offloads in (False, True)
            if (found := self._streaming(replace(full, keep_attention=keeps, offload_inputs=offloads), budget))
        ]
        return min(rows, key=lambda one: (round(one.time, 2), one.host), default=None)

    def tightest(self) -> Row:
        """The setting that takes least."""
        return min(self.rows(), key=lambda row: row.peak)

    def correct(self, row: Row, measured: float) -> None:
        """Takes what a step under a setting took, in bytes, as the measure of all others."""
        from .tracker import ACTIVATIONS

        activations = row.memory[ACTIVATIONS]
        self.factor *= max(0.1, (measured - row.peak + activations) / activations)

    def tighter(self, than: Row) -> Row | None:
        """The fastest setting that takes less than another one; None if there is none."""
        return min(
            (row for row in self.rows() if row.peak < 0.98 * than.peak and row.time >= than.time),
            key=lambda one: (round(one.time, 2), one.host),
            default=None,
        )

    def _streaming(self, settings: MemorySettings, budget: float) -> Row | None:
        """A setting with the fewest streamed blocks that fit."""
        for streamed in range(len(self.outline.blocks) + 1):
            row = self.row(replace(settings, streamed=streamed))
            if row.fits(budget):
                return row
        return None
