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
    """A block's layers that can do without their product (`skips_product`), and when they need not compute it."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
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
        return Way([]) if len(self._known) == _MOST else Way([], Liveness(self._layers()), self._known, key)

    def _layers(self) -> list[nn.Module]:
        found = {path: layer for path, layer in self._block.named_modules() if hasattr(layer, "skips_product")}
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
        if self._liveness is not None and self._known is not None:
            self._known[self._key] = self._liveness.unread(results)
