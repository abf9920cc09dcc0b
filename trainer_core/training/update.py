"""One optimizer step: the gradients of all its micro-batches, clipping, the optimizer, the moving average.

What can go wrong in it is dealt with here: a loss or gradient that is not finite never reaches the weights, and a
micro-batch that does not fit into memory is run in pieces.

A GPU works on its own, and whoever asks it for a number waits until it has done all that it was given. So an update can
be begun without asking: the device itself decides whether it counts, and its numbers are read when the next one is
under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..adapters.flat import norm
from ..errors import TrainingError, first_line
from ..families.device import is_out_of_memory, release_memory
from ..runs.events import Listener, Warning
from .advice import out_of_memory
from .batch_source import TrainBatch
from .ema import EMA
from .flat_optimizer import FlatOptimizer
from .lr_schedules import learning_rate
from .optimizers import effective_rate
from .parallel import ALONE, Ranks, RanksDiffer
from .step import BLANK, MAIN, OUTPUT, Objective

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter
    from ..config import JobConfig

HIGHEST_SCALE = 16
"""Exponent of 2, as of torch's GradScaler at its start."""
_SCALE_GROWS_EVERY = 200
"""Steps"""
_TERMS = (MAIN, OUTPUT, BLANK)

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
        self.images = [sample.item.key for batch in batches for sample in batch.everyone]
        super().__init__(
            f"step {step}: the {what} is not finite (images: {', '.join(self.images)}). Lower train.learning_rate; "
            "what was saved before is intact"
        )


@dataclass(frozen=True)
class Begun:
    """An update that the device works on."""

    step: int
    """Updates before it."""
    batches: Batches
    rate: float
    """The learning rate, as it is told."""
    numbers: Tensor
    """On the host, once it is `ready`."""
    ready: torch.cuda.Event | None
    forget: Callable[[], None]
    """Sets back what the host counts."""

    def made(self) -> Made:
        """Waits for it.

        Raises:
            NotFinite: if loss or gradient is not: then this update and all that were begun since change nothing, and
                the host counts none of them.
        """
        if self.ready is not None:
            self.ready.synchronize()
        try:
            return _checked(self.numbers, self.step, self.batches)
        except NotFinite:
            self.forget()
            raise


class Updater:
    """Makes updates of an adapter's weights. Owns the optimizer and the moving average."""

    def __init__(
        self, job: JobConfig, objective: Objective, adapter: Adapter, emit: Listener, ranks: Ranks = ALONE
    ) -> None:
        self.job, self.objective, self.adapter, self._emit, self._ranks = job, objective, adapter, emit, ranks
        self.flats = adapter.flats()
        self.flat = FlatOptimizer(adapter.parameters(), self.flats, job.train)
        self.optimizer = self.flat.optimizer
        decay = job.train.ema_decay
        self.ema = None if decay is None else EMA(adapter.parameters(), self.flats, decay, job.train.ema_warmup)
        self.pieces = 1
        """Into how many passes a micro-batch is cut; grows when memory does not do."""
        self._of_ranks = [1] * ranks.count
        """`pieces` of each rank."""
        self._agreed = ranks.count == 1
        """Whether the ranks know of one another which parameters their gradients reach."""
        trained = {objective.base.dtype} | ({objective.base.text_encoder_dtype} if job.adapter.text_encoders else set())
        self.scale: int | None = HIGHEST_SCALE if torch.float16 in trained else None
        """The loss is multiplied by 2 to the power of this while it goes back, where that is float16."""
        self.make_room: Callable[[str], bool] = lambda _: False
        """Asked before a micro-batch is cut, with the reason: whether from now on a step takes less memory."""
        self.whole = True
        """False while weights, optimizer and moving average are being changed and do not belong together."""
        self._fine: Tensor | None = None
        """On the device: whether all updates count that were begun since the host knew."""

    def update(self, batches: Batches, step: int) -> Made:
        """The update that follows `step` others: the mean of the objective over all samples of the micro-batches.

        Raises:
            NotFinite: if loss or gradient is not; nothing was changed.
            TrainingError: if there is not memory enough for a single sample; nothing was changed.
        """
        made = _checked(self._measured(batches, step), step, batches)
        self._apply(step)
        return made

    def begin(self, batches: Batches, step: int) -> Begun:
        """As `update`, without waiting for the device: what becomes of it is told by `Begun.made`.

        Raises:
            TrainingError: if there is not memory enough for a single sample; nothing was changed.
        """
        numbers = self._measured(batches, step)
        fine = numbers[0].isfinite() & numbers[-1].isfinite()
        # one that does not count takes with it those that are begun before the host knows
        self._fine = fine if self._fine is None else fine & self._fine
        forget, host, ready = self._remember(), numbers, None
        self._apply(step, self._fine)
        if numbers.is_cuda:
            host, ready = torch.empty_like(numbers, device="cpu", pin_memory=True), torch.cuda.Event()
            host.copy_(numbers, non_blocking=True)
            ready.record()
        return Begun(step, batches, effective_rate(self.optimizer), host, ready, forget)

    def _measured(self, batches: Batches, step: int) -> Tensor:
        """Computes and clips the gradients. Gives, on the device, the terms, which of them there are, and the norm."""
        numbers = self._reduced(batches) if self.scale is None else self._scaled(batches, step)
        gradients = [flat.gradient for flat in self.flats]
        numbers[-1] = total = norm(gradients)
        if self.job.train.max_grad_norm:
            for gradient in gradients:
                gradient.mul_((self.job.train.max_grad_norm / (total + 1e-6)).clamp(max=1.0))
        return numbers

    def _apply(self, step: int, fine: Tensor | None = None) -> None:
        """Changes weights, optimizer and moving average, if it is `fine`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.job.train) * group.get("ratio", 1.0)
        self.whole = False
        self.flat.step(fine)
        if self.ema is not None:
            self.ema.update(fine)
        self.whole = True

    def _remember(self) -> Callable[[], None]:
        """What sets back all that the host counts from now on."""
        forget_steps, count = self.flat.remember(), self.ema.count if self.ema else 0

        def forget() -> None:
            forget_steps()
            self._fine = None
            if self.ema is not None:
                self.ema.count = count

        return forget

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the next update depends on: tensors (weights in fp32, optimizer, moving average), and other values."""
        tensors, values = self.flat.state_dict()
        state = {f"adapter.{name}": value for name, value in self.adapter.state_dict().items()}
        state |= {f"optimizer.{name}": value for name, value in tensors.items()}
        if self.ema is not None:
            state |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        scale = {} if self.scale is None else {"loss_scale": str(self.scale)}
        self._of_ranks[self._ranks.rank] = self.pieces
        return state, {"pieces": " ".join(map(str, self._of_ranks)), **scale, "optimizer": values}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, str]) -> None:
        """The inverse of `state_dict`, bit for bit.

        Raises:
            AdapterError, RunError: if it is that of other layers, parameters or another optimizer.
        """

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.adapter.load_state_dict(below("adapter."))
        self.flat.load_state_dict(below("optimizer."), values["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(below("ema."))
        self._of_ranks = [int(one) for one in values.get("pieces", "1").split()]
        self.pieces = self._of_ranks[self._ranks.rank]
        if self.scale is not None:
            self.scale = int(values.get("loss_scale", self.scale))

    def _scaled(self, batches: Batches, step: int) -> Tensor:
        """The gradients, computed at a scale at which float16 neither loses small ones nor overflows.

        Micikevicius et al. 2018, §3.2. Powers of two change no bit of what is in range. When a gradient overflows, the
        same step is tried at half the scale; from time to time the scale grows again. It is a function of what came
        before, and a checkpoint keeps it, so that a resumed run goes on at the same.
        """
        assert self.scale is not None
        scale = min(self.scale + (step % _SCALE_GROWS_EVERY == 0), HIGHEST_SCALE)
        while True:
            numbers = self._reduced(batches, 2.0**scale)
            gradients = [flat.gradient.mul_(0.5**scale) for flat in self.flats]
            if all(gradient.isfinite().all() for gradient in gradients):
                self.scale = scale
                return numbers
            if scale == 0 or not numbers[0].isfinite():  # it is not the scale: the caller deals with it
                return numbers
            scale -= 1

    def _reduced(self, batches: Batches, scale: float = 1.0) -> Tensor:
        """The gradients times `scale`, those of all ranks; gives the terms on the device, and which of them there are.

        The place for the norm comes last.
        """
        for flat in self.flats:
            flat.follow()
        shown = self._gradients_that_fit(batches, scale)
        like = shown.get(MAIN, self.flats[0].gradient)
        numbers = torch.zeros(2 * len(_TERMS) + 1, dtype=like.dtype, device=like.device)
        for place, name in enumerate(_TERMS):
            if name in shown:
                numbers[place] = shown[name]
                numbers[len(_TERMS) + place].fill_(1)
        for flat in self.flats:
            flat.collect()
        if not self._agreed:
            self._agree()
        self._ranks.add_up(*(flat.gradient for flat in self.flats), numbers)
        self.flat.prepare()
        return numbers

    def _agree(self) -> None:
        """What the gradients of one rank reach takes part in all: of a short micro-batch, some have no part."""
        told = self._ranks.exchange([so for flat in self.flats for so in flat.reached])
        reached = [any(so) for so in zip(*told, strict=True)]
        for flat in self.flats:
            flat.reach(reached[: len(flat.parameters)])
            del reached[: len(flat.parameters)]
        self._agreed = all(all(flat.reached) for flat in self.flats)

    def meet(self, check: bool) -> None:
        """Between two steps, on all ranks at once.

        Args:
            check: whether their weights are the same, which waits for the device.

        Raises:
            RanksDiffer: if they are not.
        """
        bits = [int(flat.weights.view(torch.int32).sum(dtype=torch.int64)) for flat in self.flats] if check else []
        told = self._ranks.exchange([self.pieces, *bits])
        self._of_ranks = [pieces for pieces, *_ in told]
        if len({tuple(sums) for _, *sums in told}) > 1:
            raise RanksDiffer(
                "the processes of this run do not have the same weights any more; resume from what is saved"
            )

    def _gradients_that_fit(self, batches: Batches, scale: float = 1.0) -> dict[str, Tensor]:
        """The gradients times `scale`, in as many passes as memory asks for."""
        while True:
            for flat in self.flats:
                flat.zero()
            try:
                return self._gradients(batches, scale)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # out here the exception is gone, and with its frames the graph that filled the memory
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

    def differentiate(self, batches: Batches) -> None:
        """The gradients of an update and nothing else, which waits for no number: to find out what they take."""
        for flat in self.flats:
            flat.zero()
        self._gradients(batches, 1.0)
        for flat in self.flats:
            flat.collect()

    def _gradients(self, batches: Batches, scale: float) -> dict[str, Tensor]:
        """Adds up the gradients, times `scale`; gives the terms of the objective by name."""
        count = sum(len(batch.everyone) for batch in batches)
        shown: dict[str, Tensor] = {}
        try:
            for number, batch in self._cut(batches):
                with self.objective.base.training_pass():
                    for term in self.objective.terms(batch, number):
                        (term.minimised.sum() / count * scale).backward()
                        shown[term.name] = shown.get(term.name, 0.0) + term.shown.sum() / count
        finally:
            self.adapter.end_pass()
        return shown

    def _cut(self, batches: Batches) -> Iterator[tuple[int, TrainBatch]]:
        """All passes, each with the number of its micro-batch."""
        for number, batch in enumerate(batches):
            size = max(1, math.ceil(len(batch) / self.pieces))
            for start in range(0, len(batch), size):
                yield number, batch.part(start, start + size)


def _checked(numbers: Tensor, step: int, batches: Batches) -> Made:
    """What an update came to, read from the device.

    Raises:
        NotFinite: if the weights would be lost, of which the next save would keep nothing else.
    """
    *told, total = numbers.tolist()
    values = {name: told[place] for place, name in enumerate(_TERMS) if told[len(_TERMS) + place]}
    loss = values.pop(MAIN)
    if not math.isfinite(loss + total):
        raise NotFinite(step + 1, "gradient" if math.isfinite(loss) else "loss", batches)
    return Made(loss, total, values)
