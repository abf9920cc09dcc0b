"""A moving average of the weights (Polyak & Juditsky 1992): smoother than the last step, and part of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..adapters.flat import Flat, located
from ..errors import RunError

_COUNT = "count"


class EMA:
    """Averages of parameters in fp32, which start as the parameters are; one kernel for each buffer.

    After update n (0, 1, …): average ← d · average + (1 - d) · parameter, where d is the decay, or with warm-up
    min(decay, (1 + n) / (10 + n)), so that the first weights, which know nothing, are soon forgotten.

    Args:
        parameters: What is averaged; their order names them in `state_dict`.
        flats: Where all of them lie.
        decay: Between 0 and 1; about 1 / (1 - decay) updates are averaged over.
        warmup: Whether the average follows faster at first.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], flats: Sequence[Flat], decay: float, warmup: bool) -> None:
        self.decay, self.warmup = decay, warmup
        self.count = 0
        self._flats = list(flats)
        self._places = [(self._flats.index(flat), number) for flat, number in located(parameters, flats)]
        self._buffers = [flat.weights.clone() for flat in self._flats]
        self._in_place = False

    @property
    def averages(self) -> list[Tensor]:
        """The average of each parameter, in its shape."""
        return [self._flats[one].view(self._buffers[one], number) for one, number in self._places]

    @torch.no_grad()
    def update(self, fine: Tensor | None = None) -> None:
        """Takes the parameters as they are now into the average; to be called once after each optimizer step.

        Args:
            fine: True or False on the device: whether the step was made. If not, the average stays, bit for bit; the
                `count` is for the caller to set back.
        """
        if self._in_place:
            raise RuntimeError("the averages are in the parameters' place: they cannot be averaged with themselves")
        warm = (1 + self.count) / (10 + self.count)
        share = 1 - (min(self.decay, warm) if self.warmup else self.decay)
        for number, flat in enumerate(self._flats):
            average = self._buffers[number] = self._buffers[number].to(flat.weights.device)
            # of numbers that are finite, a share of 0 takes nothing
            average.lerp_(flat.weights, share if fine is None else fine * share)
        self.count += 1

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew from the parameters as they are now, such as after a warm start."""
        for average, flat in zip(self._buffers, self._flats, strict=True):
            average.copy_(flat.weights)
        self.count = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the averages on the CPU by index, `0`, `1`, …, and `count`, the number of updates."""
        averages = {str(index): average.to("cpu", copy=True) for index, average in enumerate(self.averages)}
        return averages | {_COUNT: torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`, bit for bit; decay and warm-up stay the job's.

        Raises:
            RunError: if the state is not that of these parameters; nothing is changed then.
        """
        shapes = {str(index): average.shape for index, average in enumerate(self.averages)}
        if {name: value.shape for name, value in state.items() if name != _COUNT} != shapes or _COUNT not in state:
            raise RunError(
                "the checkpoint's moving average does not fit the adapter, or there is none: was train.ema_decay or "
                "the adapter changed since? Set it back, or begin a new run from the LoRA with adapter.warm_start"
            )
        for index, average in enumerate(self.averages):
            average.copy_(state[str(index)])
        self.count = int(state[_COUNT])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in the parameters' place; afterwards, even after an error, the parameters are back bit for bit.

        Values are copied, not exchanged, so that whatever holds a parameter (an optimizer, a compiled model) still
        does; that takes the parameters' memory once more meanwhile.
        """
        if self._in_place:
            raise RuntimeError("the averages are in the parameters' place already")
        raw = [flat.weights.clone() for flat in self._flats]
        self._in_place = True
        try:
            self._put(self._buffers)
            yield
        finally:
            self._put(raw)
            self._in_place = False

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for flat, value in zip(self._flats, values, strict=True):
            flat.weights.copy_(value)
