"""LoRA on linear layers as autograd functions: y = W x + b + scale · B A x.

Layers that read the same tensor, such as q, k and v, are one function with one down-projection. For the backward pass
it keeps x, once, and h = A x (T, r) of each layer, and nothing else. The frozen product comes last, and the LoRA's is
added into it. The gradients to x of all these layers are summed up in one tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..memory.again import Again, again
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
    if not without_graph(layer.base_layer):
        product = with_gradient(layer.base_layer, layer.operation, x, layer.base_layer(x))
        return Reading([layer], x, product).take(layer)
    if layer.siblings is None or layer.dropout.mask is not None:
        return Reading([layer], x).take(layer)
    return layer.siblings.output(layer, x)


class Siblings:
    """Layers that are given the same tensor one after the other."""

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        self.layers = list(layers)

    def output(self, layer: LoraLayer, x: Tensor) -> Tensor:
        """A layer's output, computed together with those of its siblings when the first of them was given x."""
        readings = layer.working.readings  # of this pass: one that failed leaves its graph in them
        found: Reading | None = readings.pop(self, None)
        if found is None or not found.is_for(layer, x):
            following = self.layers[self.layers.index(layer) :]
            found = Reading([layer, *filter(_is_usual, following[1:])], x)
        y = found.take(layer)
        if found.waiting:
            readings[self] = found
        return y


def _is_usual(layer: LoraLayer) -> bool:
    return layer.enabled and layer.dropout.mask is None and without_graph(layer.base_layer)


class Reading:
    """One tensor that layers read: their outputs for it."""

    def __init__(self, layers: Sequence[LoraLayer], x: Tensor, product: Tensor | None = None) -> None:
        """Computes them. Only one layer may have a product with a graph of its own."""
        self._x = weakref.ref(x)
        self._state = _state(x)
        self._settings = [_settings(layer) for layer in layers]
        self._uses: list[int] = []
        """Backward passes: what one has been through takes no further layers."""
        dtype = computing_dtype(x)
        cast = None if x.dtype == dtype else x.detach().to(dtype)
        kept = again(x) if cast is None else None
        trained = [layer.trained[f"lora_{which}.weight"] for which in "AB" for layer in layers]
        weights = [layer.working.of(one, dtype) for layer, one in zip((*layers, *layers), trained, strict=True)]
        found = _LowRank.apply(self._uses, layers, weights, kept, cast, product, x, *trained)
        self.waiting: dict[LoraLayer, Tensor] = dict(zip(layers, found, strict=True))
        self._layers = layers

    def is_for(self, layer: LoraLayer, x: Tensor) -> bool:
        """Whether a layer can take its output for x from here: nothing has changed since."""
        if layer not in self.waiting or self._x() is not x or self._state != _state(x) or self._uses:
            return False
        return _settings(layer) == self._settings[self._layers.index(layer)]

    def take(self, layer: LoraLayer) -> Tensor:
        return self.waiting.pop(layer)


class Watch(Siblings):
    """Sees in one pass which layers of a block are given the same tensor."""

    def __init__(self, block_of: Mapping[LoraLayer, str]) -> None:
        super().__init__([])
        self._block_of = block_of
        self._seen: list[tuple[weakref.ref[Tensor], Any, list[LoraLayer]]] = []
        self._known: set[LoraLayer] = set()

    def output(self, layer: LoraLayer, x: Tensor) -> Tensor:
        if layer not in self._known:
            self._known.add(layer)
            block, now = self._block_of[layer], _state(x)
            same = (own for given, state, own in reversed(self._seen) if given() is x and state == now)
            own = next((own for own in same if self._block_of[own[0]] == block), None)
            if own is None:
                self._seen.append((weakref.ref(x), _state(x), [layer]))
            else:
                own.append(layer)
        return Reading([layer], x).take(layer)

    def found(self) -> list[Siblings]:
        """The groups of layers, of one or more."""
        return [Siblings(layers) for _, _, layers in self._seen]


def _state(x: Tensor) -> tuple[Any, ...]:
    """Equal for one tensor as long as it has the same values and is computed with in the same way."""
    version = None if x.is_inference() else x._version  # noqa: SLF001
    return version, torch.is_grad_enabled(), x.requires_grad, computing_dtype(x)


def _settings(layer: LoraLayer) -> tuple[Any, ...]:
    """What a layer's output depends on, but for its input."""
    versions = (one._version for one in layer.trained.values())  # noqa: SLF001
    return layer.scale * layer.strength, layer.skips_product, *versions


class _LowRank(torch.autograd.Function):
    """y = W x + b + scale · x Aᵀ Bᵀ (…, out) of each layer, where the product W x + b may be given with a graph.

    `weights` are the A of all layers and then the B, in the precision of computing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        uses: list[int],
        layers: Sequence[LoraLayer],
        weights: list[Tensor],
        how: Again | None,
        cast: Tensor | None,
        product: Tensor | None,
        x: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor, ...]:
        given = x if cast is None else cast
        ctx.uses, ctx.layers, ctx.again, ctx.like = uses, layers, how, (x.shape, x.dtype)
        ctx.mask = layers[0].dropout.mask
        ctx.scales = [layer.scale * layer.strength for layer in layers]
        ctx.set_materialize_grads(False)
        downs, ups = weights[: len(layers)], weights[len(layers) :]
        rows = given.reshape(-1, given.shape[-1])
        if ctx.mask is not None:
            rows = ctx.mask.drop(rows)
        h = rows @ _stacked(downs).T
        ctx.save_for_backward(h, *weights, *([given] if how is None else how.inputs))
        parts = zip(layers, _split(h, downs, 1), ups, ctx.scales, strict=True)
        return tuple(_output(layer, given, part, up, scale, product) for layer, part, up, scale in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        h, *saved = ctx.saved_tensors
        count = len(gradients)
        downs, ups, kept = saved[:count], saved[count : 2 * count], saved[2 * count :]
        hs = _split(h, downs, 1)
        ctx.uses.append(1)
        x_gradient: Tensor | None = None
        product_gradient = gradients[0] if ctx.needs_input_grad[5] else None
        reached = [k for k, gradient in enumerate(gradients) if gradient is not None]
        h_gradients: dict[int, Tensor] = {}
        found: list[Tensor | None] = [None] * (2 * count)
        for k in reversed(reached):
            up, scale = ups[k], ctx.scales[k]
            rows = gradients[k].reshape(-1, len(up)).to(h.dtype)  # type: ignore[union-attr]
            if ctx.needs_input_grad[6] and product_gradient is None:
                x_gradient = add_input_gradient(ctx.layers[k].base_layer, rows, x_gradient)
            h_gradients[k], up_gradient = rows @ up, rows.T @ hs[k]
            if scale != 1:
                h_gradients[k].mul_(scale)
                up_gradient.mul_(scale)
            found[count + k] = _for_master(up_gradient)
        shape, dtype = ctx.like
        if reached:
            h_gradient = _stacked([h_gradients[k].T for k in reached]).T
            if ctx.needs_input_grad[6]:
                x_gradient = _with_branch(x_gradient, h_gradient, _stacked([downs[k] for k in reached]), ctx)
            rows = (kept[0] if ctx.again is None else ctx.again(kept)).reshape(-1, shape[-1])
            if ctx.mask is not None:
                rows = ctx.mask.drop(rows)
            parts = _split(h_gradient.T @ rows, [downs[k] for k in reached])
            for k, part in zip(reached, parts, strict=True):
                found[k] = _for_master(part)
        if x_gradient is not None:
            x_gradient = x_gradient.view(shape).to(dtype)
        return *(None,) * 5, product_gradient, x_gradient, *found


def _output(layer: LoraLayer, x: Tensor, h: Tensor, up: Tensor, scale: float, product: Tensor | None) -> Tensor:
    """W x + b + scale · h Bᵀ; the product comes last."""
    if layer.skips_product and product is None:
        return h.new_empty(*x.shape[:-1], len(up))
    y = layer.base_layer(x) if product is None else product
    # models change outputs in place, which a function's must not be views for
    rows = y.reshape(-1, len(up))
    if product is None and y.dtype == h.dtype and is_own(layer.base_layer, x, y):
        rows.addmm_(h, up.T, alpha=scale)
        return y.detach()
    return (rows + (h @ up.T).mul_(scale).to(y.dtype)).view(y.shape).detach()


def _with_branch(total: Tensor | None, h_gradient: Tensor, down: Tensor, ctx: Any) -> Tensor:
    """total + gh A, with what was dropped left out; in place."""
    if ctx.mask is None and total is not None:
        return total.addmm_(h_gradient, down)
    added = h_gradient @ down
    if ctx.mask is not None:
        added = ctx.mask.drop(added)
    return added if total is None else total.add_(added)


def _for_master(gradient: Tensor) -> Tensor:
    return gradient.float() if gradient.dtype.itemsize < 4 else gradient


def _split(tensor: Tensor, like: Sequence[Tensor], dim: int = 0) -> Sequence[Tensor]:
    """The parts that belong to tensors, by their lengths."""
    return tensor.split([len(one) for one in like], dim) if len(like) > 1 else (tensor,)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
