"""All trained tensors of a group in one buffer, and their gradients in another.

Layers, checkpoints and exports go on seeing an nn.Parameter for each tensor, which is a view of the buffer. Whatever is
the same for all of them (clipping, optimizer, moving average, the sum over several GPUs) then takes one kernel each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_ALIGNED = 16
"""Elements. Each tensor starts at 64 bytes, as one of its own would: products on the CPU may depend on that."""
_ROW = 1024
"""Elements that are added up one after the other for a norm; the size is a multiple, so that rows are views."""


class Flat:
    """Two fp32 buffers (n,), of parameters and of their gradients; the parameters become views of the first.

    A parameter's `.grad` is None until a backward pass has reached it; `collect` makes it a view of `gradient`, and
    autograd adds to that from then on. So the optimizer knows which parameters take no part. Gradients are cleared by
    `zero`, never by setting them to None.

    Elements between two parameters and at the end are zero in both buffers.
    """

    weights: Tensor
    gradient: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Takes parameters in the order in which they come to lie."""
        self.parameters = list(parameters)
        self.spans: list[tuple[int, int]] = []
        """Start and end of each parameter."""
        end = 0
        for parameter in self.parameters:
            start = self.whole(end)
            end = start + parameter.numel()
            self.spans.append((start, end))
        self.size = -(-end // _ROW) * _ROW
        self.version = 0
        """Another one whenever the buffers are others, or other parameters take part."""
        self._waiting: list[int] = []
        """Which parameters no backward pass has reached yet."""
        self._gather()

    @property
    def reached(self) -> list[bool]:
        """Of each parameter whether it has a gradient."""
        return [parameter.grad is not None for parameter in self.parameters]

    def collect(self) -> None:
        """To be called after a backward pass: gradients of parameters that it reached first go into the buffer."""
        new = {number: one for number in self._waiting if (one := self.parameters[number].grad) is not None}
        for number, gradient in new.items():
            self.parameters[number].grad = self.view(self.gradient, number).copy_(gradient)
        if new:
            self._waiting = [number for number in self._waiting if self.parameters[number].grad is None]
            self.version += 1

    def reach(self, reached: Sequence[bool]) -> None:
        """Has these parameters take part, such as those of a checkpoint, and no others."""
        for number, parameter in enumerate(self.parameters):
            parameter.grad = self.view(self.gradient, number) if reached[number] else None
        self._waiting = [number for number, so in enumerate(reached) if not so]
        self.version += 1

    def zero(self) -> None:
        """Clears all gradients, those of a backward pass that broke off too."""
        self.gradient.zero_()
        for number in self._waiting:
            self.parameters[number].grad = None

    def follow(self) -> None:
        """To be called after a model was moved, which gives each of its parameters memory of its own."""
        memory = self.weights.untyped_storage()  # not compared by address, which fake tensors have none of
        if any(one.untyped_storage() is not memory for one in self.parameters):
            self._gather()

    @staticmethod
    def whole(end: int) -> int:
        """An end of elements moved to where the next parameter may start.

        A CPU's vectors are full up to there: torch's fused optimizers round what is left over in another way.
        """
        return -(-end // _ALIGNED) * _ALIGNED

    def view(self, buffer: Tensor, number: int) -> Tensor:
        """One parameter's part of a buffer (n,) like `weights`, in its shape."""
        start, end = self.spans[number]
        return buffer[start:end].view(self.parameters[number].shape)

    def _gather(self) -> None:
        reached, like = self.reached, self.parameters[0]
        self.weights = torch.zeros(self.size, dtype=like.dtype, device=like.device)
        self.gradient = torch.zeros_like(self.weights)
        for number, parameter in enumerate(self.parameters):
            view = self.view(self.weights, number)
            view.copy_(parameter.detach())
            parameter.data = view
        self.reach(reached)


def norm(buffers: Sequence[Tensor]) -> Tensor:
    """The 2-norm of buffers (n,) of `Flat`s as if they were one, without dimensions.

    In rows, since a CPU adds float32 up one after the other, and would be 0.1 % off at 20 million.
    """
    rows = [torch.linalg.vector_norm(buffer.view(-1, _ROW), dim=1) for buffer in buffers]
    return torch.linalg.vector_norm(rows[0] if len(rows) == 1 else torch.cat(rows))


def located(parameters: Sequence[nn.Parameter], flats: Sequence[Flat]) -> list[tuple[Flat, int]]:
    """Where each parameter lies: in which `Flat`, and its number there."""
    places = {id(one): (flat, number) for flat in flats for number, one in enumerate(flat.parameters)}
    return [places[id(parameter)] for parameter in parameters]
