"""Products of frozen layers that a recomputed block does not repeat: in its gradient nobody looks at them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .liveness import Liveness, fixed

_MOST = 32
"""Ways in which a block is called that are told apart: where each call is another, nothing is gained by looking on."""


class Unread:
    """Layers of a block that can do without their product, and when they need not compute it."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._known: dict[Hashable, list[Any]] = {}
        """For each way to call it: the layers whose product nobody reads."""

    def way(self, arguments: Any, inputs: Sequence[Tensor]) -> Way:
        """What is around a second computation.

        Args:
            arguments: all that the course of the block depends on, but for tensors.
            inputs: the tensors that it is given.
        """
        try:
            key = fixed(arguments), tuple((one.shape, one.dtype, one.device, one.requires_grad) for one in inputs)
        except ValueError:
            return Way([])
        if key in self._known:
            return Way(self._known[key], is_new=False)
        if len(self._known) == _MOST:
            return Way([])
        return Way([], Liveness(self._layers) if self._layers else None, self._known, key)


def skipping(block: nn.Module) -> list[nn.Module]:
    """Layers of a block that know how to do without their product (`skips_product`)."""
    found = {path: layer for path, layer in block.named_modules() if hasattr(layer, "skips_product")}
    return [layer for path, layer in found.items() if not any(path.startswith(f"{other}.") for other in found)]


class Way:
    """A second computation, without the products of some layers."""

    def __init__(
        self,
        layers: Sequence[Any],
        liveness: Liveness | None = None,
        known: dict[Hashable, list[Any]] | None = None,
        key: Hashable = None,
        is_new: bool = True,
    ) -> None:
        self._layers, self._liveness, self._known, self._key = layers, liveness, known, key
        self._stack = ExitStack()
        self.is_new = is_new
        """Whether nothing was known of such a call."""

    def __enter__(self) -> Way:
        for layer in self._layers:
            layer.skips_product = True
        if self._liveness is not None:
            self._stack.enter_context(self._liveness.watching())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for layer in self._layers:
            layer.skips_product = False

    def learn(self, results: Sequence[Tensor]) -> None:
        """Remembers what such a call can do without, by its results with their graph."""
        if self._known is not None:
            self._known[self._key] = [] if self._liveness is None else self._liveness.unread(results)
