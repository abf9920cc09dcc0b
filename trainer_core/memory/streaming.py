"""Blocks whose weights stay in host memory and come to the device when they compute (block swapping, layer offloading).

Weights only ever go to the device: they are frozen, so that their place there is simply given to the next block.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .blocks import blocks_of
from .copier import Copier, Slot
from .settings import MemorySettings
from .streaming_weights import BlockWeights, shared_tensors


def evenly_spread(count: int, total: int) -> list[int]:
    """Which of `total` blocks are streamed, if `count` of them are: those between give the copies time."""
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def streamed_blocks(denoiser: nn.Module, memory: MemorySettings, copier: Copier) -> Streamed:
    """Streams as many of a denoiser's blocks as the settings say, out of those that they recompute."""
    blocks = blocks_of(denoiser)
    recomputed = dict([*blocks.items()][:: memory.every])
    return Streamed(denoiser, recomputed, min(memory.streamed_of(len(blocks)), len(recomputed)), copier)


class Streamed:
    """Streams some of a model's blocks through a ring of slots on the device.

    Block k of those that are streamed computes in slot k modulo the ring, so that the last ones of a forward pass are
    there when the backward pass begins. While one computes, those that follow are on their way: those after it in a
    forward pass, before it in a backward pass. Blocks that come in another order are copied when they are called.

    They have to be recomputed in the backward pass (`recompute_blocks`, called after this): autograd cannot keep
    weights that make room for others. What is trained never moves.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        count: int,
        copier: Copier,
        ring: int = 2,
    ) -> None:
        """
        Args:
            blocks: the model's blocks by path, in the order in which they compute; none is inside another.
            count: of the blocks that are streamed.
            ring: slots on the device, each as large as the largest streamed block.
        """
        self._model, self._blocks, self._copier, self._ring = model, blocks, copier, ring
        self._weights: list[BlockWeights] = []
        self._numbers: dict[str, int] = {}
        """Of the streamed blocks, by path."""
        self._slots: list[Slot] = []
        self._views: list[list[Tensor]] = []
        """Each streamed block's tensors in its slot."""
        self._turns = False
        """Whether a backward pass follows the forward pass at hand."""
        self._differentiated: set[str] = set()
        """Paths of blocks that are computed for the backward pass at this moment."""
        weakref.finalize(self, copier.close)  # memory must not go while it is copied into
        model.register_forward_pre_hook(self._begins)
        for path, block in blocks.items():
            block.forward = self._on_device(path, block.forward)
            vars(block)["around_backward"] = functools.partial(self._backward, path)
        self.choose(count)

    @property
    def host_bytes(self) -> int:
        """Of the streamed blocks."""
        return sum(one.size for one in self._weights)

    @property
    def device_bytes(self) -> int:
        """Of the ring."""
        return min(self._ring, len(self._weights)) * max((one.size for one in self._weights), default=0)

    def choose(self, count: int) -> None:
        """Streams so many blocks from now on, between two passes; the others' weights are in host memory afterwards."""
        self.unload()
        for one in self._weights:
            one.give_back()
        paths = [*self._blocks]
        chosen = {paths[number]: self._blocks[paths[number]] for number in evenly_spread(count, len(paths))}
        shared = shared_tensors(self._model, chosen)
        self._numbers = {path: number for number, path in enumerate(chosen)}
        self._weights = []
        with torch.inference_mode(False):
            for block in chosen.values():
                weights = BlockWeights(block, shared)
                weights.take(self._copier.pinned(weights.size))
                self._weights.append(weights)

    def unload(self) -> None:
        """Frees the ring; the next pass allocates it again."""
        self._copier.finish()
        self._slots, self._views = [], []

    def close(self) -> None:
        """Frees the ring, and unlocks host memory; the blocks are not used any more."""
        self.unload()
        self._copier.close()

    # what is around the computation of a block

    def _begins(self, *_: object) -> None:
        self._turns = torch.is_grad_enabled()

    def _on_device(self, path: str, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._used(path):
                given = run(*args, **kwargs)
            recomputed = path in self._differentiated or not torch.is_grad_enabled()
            if path in self._numbers and not recomputed and _has_graph(given):
                raise TrainingError(
                    "layer offloading: a block whose weights are streamed has to be computed again in the backward "
                    "pass. Switch on train.gradient_checkpointing, or set memory.layer_offloading to 0"
                )
            return given

        return forward

    @contextmanager
    def _backward(self, path: str) -> Iterator[None]:
        """Around a block's second computation and its gradient."""
        self._differentiated.add(path)
        try:
            with self._used(path):
                yield
        finally:
            self._differentiated.discard(path)

    @contextmanager
    def _used(self, path: str) -> Iterator[None]:
        """A block's weights are on the device."""
        number = self._numbers.get(path)
        if number is None:
            yield
            return
        backwards = path in self._differentiated
        slot = self._allocated()[number % len(self._slots)]
        if slot.holds != number:
            self._load(number)
        if not slot.users:
            slot.holds = None  # if the copy has failed
            self._copier.wait(slot)
            slot.holds = number
            self._weights[number].put(self._views[number])
        slot.users += 1
        try:
            self._prefetch(number, backwards)
            yield
        finally:
            slot.users -= 1
            if not slot.users:
                self._weights[number].put()
                self._copier.free(slot)
                self._prefetch(number, backwards)

    def _allocated(self) -> list[Slot]:
        if not self._slots:
            size = max(one.size for one in self._weights)
            with torch.inference_mode(False):  # a preview may come first
                slots = [self._copier.allocate(size) for _ in range(min(self._ring, len(self._weights)))]
                self._views = [one.views(slots[k % len(slots)].memory) for k, one in enumerate(self._weights)]
            self._slots = slots
        return self._slots

    def _load(self, number: int) -> None:
        slot = self._slots[number % len(self._slots)]
        if slot.users:
            raise RuntimeError("two streamed blocks compute in one slot: one is inside the other")
        slot.holds = None  # if this fails, it holds neither
        self._copier.copy(slot, self._weights[number])
        slot.holds = number

    def _prefetch(self, number: int, backwards: bool) -> None:
        """Has each slot that is free hold that of its blocks that is needed next."""
        seen: set[int] = set()
        for following in self._following(number, backwards):
            place = following % len(self._slots)
            if place not in seen:
                seen.add(place)
                slot = self._slots[place]
                if not slot.users and slot.holds != following:
                    self._load(following)
            if len(seen) == len(self._slots):
                break

    def _following(self, number: int, backwards: bool) -> Iterator[int]:
        """The streamed blocks in the order in which they are needed after one."""
        count = len(self._weights)
        if backwards:
            return chain(range(number - 1, -1, -1), range(count))
        return chain(range(number + 1, count), range(count - 1, -1, -1) if self._turns else range(count))


def _has_graph(given: Any) -> bool:
    """Whether one of the tensors in a block's result has a graph."""
    if isinstance(given, Tensor):
        return given.requires_grad
    if isinstance(given, Mapping):
        return any(map(_has_graph, given.values()))
    return isinstance(given, list | tuple) and any(map(_has_graph, given))
