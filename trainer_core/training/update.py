"""One optimizer step: the gradients of all its micro-batches, clipping, the optimizer, the moving average.

What can go wrong in it is dealt with here: a loss or gradient that is not finite never reaches the weights, and a
micro-batch that does not fit into memory is run in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import TrainingError, first_line
from ..families.device import is_out_of_memory, release_memory
from .advice import out_of_memory
from .ema import EMA
from .events import Listener, Warning
from .lr_schedules import learning_rate
from .optimizers import make_optimizer
from .step import MAIN, Objective

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..config import JobConfig
    from ..data.scan import Sample

Batches = Sequence[list["Sample"]]


class Made(NamedTuple):
    """An update that was made."""

    loss: float
    norm: float
    """Of the gradients, before clipping."""
    parts: dict[str, float]
    """The other terms of the objective by name."""


class NotFinite(TrainingError):
    """Loss or gradient of a step is nan or infinite; weights and optimizer are as before."""

    def __init__(self, step: int, what: str, batches: Batches) -> None:
        self.what = what
        """loss or gradient"""
        self.images = [sample.item.key for batch in batches for sample in batch]
        super().__init__(
            f"step {step}: the {what} is not finite (images: {', '.join(self.images)}). Lower train.learning_rate; "
            "what was saved before is intact"
        )


class Updater:
    """Makes updates of an adapter's weights. Owns the optimizer and the moving average."""

    def __init__(self, job: JobConfig, objective: Objective, adapter: Adapter, emit: Listener) -> None:
        self.job, self.objective, self.adapter, self._emit = job, objective, adapter, emit
        self.optimizer = make_optimizer(adapter.parameters(), job.train, adapter.text_parameters())
        decay = job.train.ema_decay
        self.ema = None if decay is None else EMA(adapter.parameters(), decay, job.train.ema_warmup)
        self.pieces = 1
        """Into how many passes a micro-batch is cut; grows when memory does not do."""
        self.whole = True
        """False while weights, optimizer and moving average are being changed and do not belong together."""

    def update(self, batches: Batches, step: int, draw: int) -> Made:
        """The update that follows `step` others: the mean of the objective over all samples of the micro-batches.

        Args:
            draw: the place of all random draws; differs from `step` once batches were passed over.

        Raises:
            NotFinite: if loss or gradient is not; nothing was changed.
            TrainingError: if there is not memory enough for a single sample; nothing was changed.
        """
        shown = self._gradients_that_fit(batches, draw)
        norm = nn.utils.clip_grad_norm_(self.adapter.parameters(), self.job.train.max_grad_norm or math.inf)
        # one wait for the device per step: all numbers come over together
        values = dict(zip(shown, torch.stack([*shown.values()]).tolist(), strict=True))
        loss, total = values.pop(MAIN), float(norm)
        if not math.isfinite(loss + total):  # the weights would be lost, and the next save would keep only that
            self.optimizer.zero_grad(set_to_none=True)
            raise NotFinite(step + 1, "gradient" if math.isfinite(loss) else "loss", batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.job.train) * group.get("ratio", 1.0)
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self.whole = True
        return Made(loss, total, values)

    def _gradients_that_fit(self, batches: Batches, draw: int) -> dict[str, Tensor]:
        """The gradients, in as many passes as memory asks for."""
        while True:
            try:
                return self._gradients(batches, draw)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # out here the exception is gone, and with its frames the graph that filled the memory
            self.optimizer.zero_grad(set_to_none=True)
            release_memory(self.objective.base.device)
            largest = max(len(batch) for batch in batches)
            if self.pieces >= largest:
                raise TrainingError(f"{out_of_memory(self.job)} ({reason})")
            self.pieces *= 2
            size = math.ceil(largest / self.pieces)
            self._emit(
                Warning(
                    f"memory is not enough for {largest} images in one pass ({reason}): from now on {size} at a time, "
                    "which is the same step and takes longer. train.batch_size with more gradient_accumulation says so "
                    "from the start"
                )
            )

    def _gradients(self, batches: Batches, draw: int) -> dict[str, Tensor]:
        """Adds up the gradients; gives the terms of the objective by name."""
        count = sum(len(batch) for batch in batches)
        seen: dict[str, int] = {}
        shown: dict[str, Tensor] = {}
        for number, batch in self._cut(batches):
            for term in self.objective.terms(batch, draw, number, seen):
                (term.minimised.sum() / count).backward()
                shown[term.name] = shown.get(term.name, 0.0) + term.shown.sum() / count
        return shown

    def _cut(self, batches: Batches) -> Iterator[tuple[int, list[Sample]]]:
        """All passes, each with a number of its own; without cuts it is that of the micro-batch."""
        for number, batch in enumerate(batches):
            size = math.ceil(len(batch) / self.pieces)
            for piece, start in enumerate(range(0, len(batch), size)):
                yield number + piece * len(batches), batch[start : start + size]
