"""One optimizer step: the gradients of all its micro-batches, clipping, the optimizer, the moving average.

What can go wrong in it is dealt with here: a loss or gradient that is not finite never reaches the weights, and a
micro-batch that does not fit into memory is run in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import TrainingError, first_line
from ..families.device import is_out_of_memory, release_memory
from ..runs.events import Listener, Warning
from .advice import out_of_memory
from .batch_source import TrainBatch
from .ema import EMA
from .lr_schedules import learning_rate
from .optimizer_state import load_optimizer, optimizer_tensors
from .optimizers import make_optimizer
from .step import MAIN, Objective

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..config import JobConfig

HIGHEST_SCALE = 16
"""Exponent of 2, as of torch's GradScaler at its start."""
_SCALE_GROWS_EVERY = 200
"""Steps"""

Batches = Sequence[TrainBatch]


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
        self.images = [sample.item.key for batch in batches for sample in batch.samples]
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
        trained = {objective.base.dtype} | ({objective.base.text_encoder_dtype} if job.adapter.text_encoders else set())
        self.scale: int | None = HIGHEST_SCALE if torch.float16 in trained else None
        """The loss is multiplied by 2 to the power of this while it goes back, where that is float16."""
        self.make_room: Callable[[str], bool] = lambda _: False
        """Asked before a micro-batch is cut, with the reason: whether from now on a step takes less memory."""
        self.whole = True
        """False while weights, optimizer and moving average are being changed and do not belong together."""

    def update(self, batches: Batches, step: int) -> Made:
        """The update that follows `step` others: the mean of the objective over all samples of the micro-batches.

        Raises:
            NotFinite: if loss or gradient is not; nothing was changed.
            TrainingError: if there is not memory enough for a single sample; nothing was changed.
        """
        shown = self._gradients_that_fit(batches) if self.scale is None else self._scaled(batches, step)
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

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the next update depends on: tensors (weights in fp32, optimizer, moving average), and other values."""
        tensors, values = optimizer_tensors(self.optimizer)
        state = {f"adapter.{name}": value for name, value in self.adapter.state_dict().items()}
        state |= {f"optimizer.{name}": value for name, value in tensors.items()}
        if self.ema is not None:
            state |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        scale = {} if self.scale is None else {"loss_scale": str(self.scale)}
        return state, {"pieces": str(self.pieces), **scale, "optimizer": values}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, str]) -> None:
        """The inverse of `state_dict`, bit for bit.

        Raises:
            AdapterError, RunError: if it is that of other layers, parameters or another optimizer.
        """

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.adapter.load_state_dict(below("adapter."))
        load_optimizer(self.optimizer, below("optimizer."), values["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(below("ema."))
        self.pieces = int(values.get("pieces", 1))
        if self.scale is not None:
            self.scale = int(values.get("loss_scale", self.scale))

    def _scaled(self, batches: Batches, step: int) -> dict[str, Tensor]:
        """The gradients, computed at a scale at which float16 neither loses small ones nor overflows.

        Micikevicius et al. 2018, §3.2. Powers of two change no bit of what is in range. When a gradient overflows, the
        same step is tried at half the scale; from time to time the scale grows again. It is a function of what came
        before, and a checkpoint keeps it, so that a resumed run goes on at the same.
        """
        assert self.scale is not None
        scale = min(self.scale + (step % _SCALE_GROWS_EVERY == 0), HIGHEST_SCALE)
        while True:
            shown = self._gradients_that_fit(batches, 2.0**scale)
            gradients = [one.grad for one in self.adapter.parameters() if one.grad is not None]
            for gradient in gradients:
                gradient.mul_(0.5**scale)
            if torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
                self.scale = scale
                return shown
            if scale == 0 or not shown[MAIN].isfinite():  # it is not the scale: `update` deals with it
                return shown
            scale -= 1
            self.optimizer.zero_grad(set_to_none=True)

    def _gradients_that_fit(self, batches: Batches, scale: float = 1.0) -> dict[str, Tensor]:
        """The gradients times `scale`, in as many passes as memory asks for."""
        while True:
            try:
                return self._gradients(batches, scale)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # out here the exception is gone, and with its frames the graph that filled the memory
            self.optimizer.zero_grad(set_to_none=True)
            release_memory(self.objective.base.device)
            if self.make_room(reason):
                continue
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

    def _gradients(self, batches: Batches, scale: float) -> dict[str, Tensor]:
        """Adds up the gradients, times `scale`; gives the terms of the objective by name."""
        count = sum(len(batch) for batch in batches)
        shown: dict[str, Tensor] = {}
        for number, batch in self._cut(batches):
            with self.objective.base.training_pass():
                for term in self.objective.terms(batch, number):
                    (term.minimised.sum() / count * scale).backward()
                    shown[term.name] = shown.get(term.name, 0.0) + term.shown.sum() / count
        return shown

    def _cut(self, batches: Batches) -> Iterator[tuple[int, TrainBatch]]:
        """All passes, each with a number of its own; without cuts it is that of the micro-batch."""
        for number, batch in enumerate(batches):
            size = math.ceil(len(batch) / self.pieces)
            for piece, start in enumerate(range(0, len(batch), size)):
                yield number + piece * len(batches), batch.part(start, start + size)
