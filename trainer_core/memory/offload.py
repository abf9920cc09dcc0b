"""Inputs of recomputed blocks that wait in host memory for the backward pass (activation offloading)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from .saved import Kept, Unchanged, keep, on_change


@dataclass
class Copy:
    """A tensor's values in host memory, and on the device again as soon as they were asked for."""

    host: Tensor
    gone: Any = None
    """An event: they have left the device."""
    device: Tensor | None = None
    back: Any = None
    """An event: they have come to the device."""


class Copies:
    """For devices without streams: copies at once."""

    def leave(self, tensor: Tensor) -> Copy:
        """Begins to copy a tensor to host memory; the caller need not keep it, and calls `wait_gone` to change it."""
        return Copy(tensor.to("cpu", copy=True))

    def wait_gone(self, copy: Copy) -> None:
        """What is computed from now on may change the tensor."""

    def come(self, copy: Copy) -> None:
        """Begins to copy it to the device again."""
        copy.device = copy.host

    def wait_back(self, copy: Copy) -> None:
        """What is computed from now on finds it on the device."""


class CudaCopies(Copies):
    """Copies on a stream of its own, by way of page-locked memory. This class was not run on a GPU yet."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def leave(self, tensor: Tensor) -> Copy:
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._copy(host, tensor)
        return Copy(host, self._stream.record_event())

    def wait_gone(self, copy: Copy) -> None:
        torch.cuda.current_stream(self._device).wait_event(copy.gone)

    def come(self, copy: Copy) -> None:
        copy.device = torch.empty_like(copy.host, device=self._device)  # where it is used: it is freed there, too
        self._copy(copy.device, copy.host)
        copy.back = self._stream.record_event()

    def wait_back(self, copy: Copy) -> None:
        torch.cuda.current_stream(self._device).wait_event(copy.back)

    def _copy(self, target: Tensor, source: Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        for one in (target, source):
            if one.is_cuda:
                one.record_stream(self._stream)  # not used for something else before that


def copies_for(device: torch.device) -> Copies | None:
    """None where host memory is all there is."""
    if device.type == "cpu":
        return None
    return CudaCopies(device) if device.type == "cuda" else Copies()


class Offload:
    """What a model's blocks are given, in host memory until shortly before it is needed."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._waiting: list[ref[Inputs]] = []
        """Of blocks that wait for their backward pass, the last one at the end."""

    def keep(self, tensors: Sequence[Tensor]) -> Inputs:
        """Keeps a block's inputs; those that have a graph, as what blocks hand on has, go to host memory.

        What has none is given to several blocks, or was there before: nothing would be gained.
        """
        made = Inputs(
            [
                _Away(one, self._copies) if one.requires_grad and one.is_contiguous() else keep(one.detach())
                for one in tensors
            ],
            self,
        )
        self._waiting.append(ref(made))
        return made

    def before(self, inputs: Inputs) -> Inputs | None:
        """The inputs of the block that was computed before, out of those that are still needed."""
        while self._waiting:
            last = self._waiting.pop()()
            if last is not None and last is not inputs:
                self._waiting.append(ref(last))
                return last
        return None


class Inputs:
    """What a block was given, as it was then."""

    def __init__(self, tensors: Sequence[Kept | Unchanged | _Away], offload: Offload | None = None) -> None:
        self._tensors, self._offload = tensors, offload

    def values(self) -> list[Tensor]:
        """Has the inputs of the block that comes next in a backward pass come, too."""
        self.come()
        if self._offload and (following := self._offload.before(self)):
            following.come()
        return [one.value() for one in self._tensors]

    def come(self) -> None:
        """Begins to bring to the device what is in host memory."""
        for one in self._tensors:
            if isinstance(one, _Away):
                one.come()


class _Away:
    """A tensor in host memory."""

    def __init__(self, tensor: Tensor, copies: Copies) -> None:
        self._copies, self._copy = copies, copies.leave(tensor.detach())
        self._requested = False
        on_change(tensor, self)

    def before_change(self, _: Any) -> None:
        self._copies.wait_gone(self._copy)

    def come(self) -> None:
        if not self._requested:
            self._requested = True
            self._copies.come(self._copy)

    def value(self) -> Tensor:
        self._copies.wait_back(self._copy)
        assert self._copy.device is not None
        return self._copy.device
