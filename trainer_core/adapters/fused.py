"""LoRA on linear layers as autograd functions: y = W x + b + scale · B A x.

Layers that read the same tensor, such as q, k and v, have one down-projection. For the backward pass it keeps x, once;
each layer keeps h = A x (T, r), and nothing else. The frozen product comes last, and the LoRA's is added into it. The
gradients to x of all these layers are summed up in one tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..memory.again import Again, again
from .dropout import dropped
from .frozen import add_input_gradient, is_own, without_graph
from .operations import Operation, with_gradient
from .working import computing_dtype

if TYPE_CHECKING:
    from .dropout import SeededDropout
    from .working import Working


class LoraLayer(Protocol):
    """What is asked of a layer here (`layers.LoraLayer`)."""

    base_layer: nn.Module
    operation: Operation
    trained: dict[str, nn.Parameter]
    dropout: SeededDropout
    working: Working
    scale: float
    strength: float
    enabled: bool
    skips_product: bool
    siblings: Siblings | None


def low_rank(layer: LoraLayer, x: Tensor) -> Tensor:
    """The output of a linear layer with its LoRA, for x (…, in)."""
    if layer.dropout.seed is None and layer.siblings is not None:
        reading = layer.siblings.reading(layer, x)
    else:
        reading = Reading([layer], x)
    given, h = reading.take(layer, x)
    product = None
    if not without_graph(layer.base_layer):
        product = with_gradient(layer.base_layer, layer.operation, x, layer.base_layer(x))
    up = layer.trained["lora_B.weight"]
    working = layer.working.of(up, h.dtype)
    y: Tensor = _Up.apply(reading.total, layer, given, working, layer.scale * layer.strength, product, h, up)
    return y


class Siblings:
    """Layers that are given the same tensor one after the other."""

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        self.layers = list(layers)

    def reading(self, layer: LoraLayer, x: Tensor) -> Reading:
        """What a layer shares with those before it that were given the same x, or else with those that follow it."""
        readings = layer.working.readings  # of this pass: one that failed leaves its graph in them
        found: Reading | None = readings.pop(self, None)
        if found is None or not found.is_for(layer, x):
            following = self.layers[self.layers.index(layer) :]
            found = Reading([one for one in following if one.enabled and one.dropout.seed is None], x)
        if len(found.waiting) > 1:
            readings[self] = found
        return found


class Reading:
    """One tensor that layers read: their down-projections of it."""

    def __init__(self, layers: Sequence[LoraLayer], x: Tensor) -> None:
        self._x = weakref.ref(x)
        self._state = _state(x)
        downs = [layer.trained["lora_A.weight"] for layer in layers]
        self._versions = {layer: down._version for layer, down in zip(layers, downs, strict=True)}  # noqa: SLF001
        dtype = computing_dtype(x)
        self._cast = None if x.dtype == dtype else x.detach().to(dtype)
        self.total = _Total(x.requires_grad and torch.is_grad_enabled())
        weights = [layer.working.of(down, dtype) for layer, down in zip(layers, downs, strict=True)]
        kept = again(x) if self._cast is None else None
        found = _Down.apply(self.total, layers[0].dropout, weights, kept, self._cast, x, *downs)
        self.waiting: dict[LoraLayer, Tensor] = dict(zip(layers, found, strict=True))

    def is_for(self, layer: LoraLayer, x: Tensor) -> bool:
        """Whether a layer can take its down-projection of x from here: nothing has changed since."""
        if layer not in self.waiting or self._x() is not x or self._state != _state(x) or self.total.is_done:
            return False
        return layer.trained["lora_A.weight"]._version == self._versions[layer]  # noqa: SLF001

    def take(self, layer: LoraLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in the precision of computing, and the layer's h (T, r)."""
        return x.detach() if self._cast is None else self._cast, self.waiting.pop(layer)


class Watch(Siblings):
    """Sees in one pass which layers of a block are given the same tensor."""

    def __init__(self, block_of: Mapping[LoraLayer, str]) -> None:
        super().__init__([])
        self._block_of = block_of
        self._seen: list[tuple[weakref.ref[Tensor], Any, list[LoraLayer]]] = []
        self._known: set[LoraLayer] = set()

    def reading(self, layer: LoraLayer, x: Tensor) -> Reading:
        if layer not in self._known:
            self._known.add(layer)
            block, now = self._block_of[layer], _state(x)
            same = (own for given, state, own in reversed(self._seen) if given() is x and state == now)
            own = next((own for own in same if self._block_of[own[0]] == block), None)
            if own is None:
                self._seen.append((weakref.ref(x), _state(x), [layer]))
            else:
                own.append(layer)
        return Reading([layer], x)

    def found(self) -> list[Siblings]:
        """The groups of layers, of one or more."""
        return [Siblings(layers) for _, _, layers in self._seen]


def _state(x: Tensor) -> tuple[Any, ...]:
    """Equal for one tensor as long as it has the same values and is computed with in the same way."""
    version = None if x.is_inference() else x._version  # noqa: SLF001
    return version, torch.is_grad_enabled(), x.requires_grad, computing_dtype(x)


class _Total:
    """The gradient to a tensor, summed up by the layers that read it, in one backward pass."""

    def __init__(self, is_needed: bool) -> None:
        self.is_needed, self.is_done = is_needed, False
        self._pass = -1
        self._sum: Tensor | None = None

    def add(self, layer: nn.Module, gradient: Tensor) -> None:
        self._sum = add_input_gradient(layer, gradient, self.take())

    def take(self) -> Tensor | None:
        """What was added in this pass. A pass that stops at B adds and never takes."""
        current = torch._C._current_graph_task_id()  # noqa: SLF001
        found, self._sum = self._sum if self._pass == current else None, None
        self._pass = current
        return found


class _Down(torch.autograd.Function):
    """h = x Aᵀ (T, r) for the A of each layer."""

    @staticmethod
    def forward(
        ctx: Any,
        total: _Total,
        dropout: Any,
        weights: list[Tensor],
        how: Again | None,
        cast: Tensor | None,
        x: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor, ...]:
        given = x if cast is None else cast
        ctx.again = how
        ctx.total, ctx.seed, ctx.rate, ctx.like = total, dropout.seed, dropout.rate, (x.shape, x.dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights, *([given] if how is None else how.inputs))
        rows = given.reshape(-1, given.shape[-1])
        if ctx.seed is not None:
            rows = dropped(rows, ctx.seed, ctx.rate)
        h = rows @ _stacked(weights).T
        return h.split([len(weight) for weight in weights], dim=1) if len(weights) > 1 else (h,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        count = len(gradients)
        saved = ctx.saved_tensors
        weights, kept = saved[:count], saved[count:]
        shape, dtype = ctx.like
        ctx.total.is_done = True
        x_gradient = ctx.total.take()
        reached = [k for k, gradient in enumerate(gradients) if gradient is not None]
        found: list[Tensor | None] = [None] * len(weights)
        if reached:
            h_gradient = _stacked([gradients[k].T for k in reached]).T  # type: ignore[union-attr]
            if ctx.needs_input_grad[5]:
                x_gradient = _with_branch(x_gradient, h_gradient, _stacked([weights[k] for k in reached]), ctx)
            rows = (kept[0] if ctx.again is None else ctx.again(kept)).reshape(-1, shape[-1])
            if ctx.seed is not None:
                rows = dropped(rows, ctx.seed, ctx.rate)
            parts = (h_gradient.T @ rows).split([len(weights[k]) for k in reached])
            for k, part in zip(reached, parts, strict=True):
                found[k] = _for_master(part)
        if x_gradient is not None:
            x_gradient = x_gradient.view(shape).to(dtype)
        return *(None,) * 5, x_gradient, *found


def _with_branch(total: Tensor | None, h_gradient: Tensor, down: Tensor, ctx: Any) -> Tensor:
    """total + gh A, with what was dropped left out; in place."""
    if ctx.seed is None and total is not None:
        return total.addmm_(h_gradient, down)
    added = h_gradient @ down
    if ctx.seed is not None:
        added = dropped(added, ctx.seed, ctx.rate)
    return added if total is None else total.add_(added)


class _Up(torch.autograd.Function):
    """y = W x + b + scale · h Bᵀ (…, out), where the product W x + b may be given with a graph of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        total: _Total,
        layer: LoraLayer,
        given: Tensor,
        up: Tensor,
        scale: float,
        product: Tensor | None,
        h: Tensor,
        _: Tensor,
    ) -> Tensor:
        ctx.total, ctx.layer, ctx.scale, ctx.has_product = total, layer, scale, product is None
        ctx.save_for_backward(h, up)
        if layer.skips_product and product is None:
            return h.new_empty(*given.shape[:-1], len(up))
        y = layer.base_layer(given) if product is None else product
        # models change outputs in place, which a function's must not be views for
        rows = y.reshape(-1, len(up))
        if product is None and y.dtype == h.dtype and is_own(layer.base_layer, given, y):
            rows.addmm_(h, up.T, alpha=scale)
            return y.detach()
        return (rows + (h @ up.T).mul_(scale).to(y.dtype)).view(y.shape).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        h, up = ctx.saved_tensors
        rows = gradient.reshape(-1, len(up)).to(h.dtype)
        if ctx.has_product and ctx.total.is_needed:
            ctx.total.add(ctx.layer.base_layer, rows)
        h_gradient, up_gradient = rows @ up, rows.T @ h
        if ctx.scale != 1:
            h_gradient.mul_(ctx.scale)
            up_gradient.mul_(ctx.scale)
        product_gradient = None if ctx.has_product else gradient
        return *(None,) * 5, product_gradient, h_gradient, _for_master(up_gradient)


def _for_master(gradient: Tensor) -> Tensor:
    return gradient.float() if gradient.dtype.itemsize < 4 else gradient


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
