"""The frozen layer below an adapter: its product without a graph, and the gradient to its input.

Nothing of the size of its weight or its input is kept for the backward pass: the weight is read again there.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..errors import AdapterError
from .operations import dense_weight


def without_graph(layer: nn.Module) -> bool:
    """Whether a linear layer's product needs no graph of its own: the gradient to its input is g W.

    It is not where hooks or functions of ComfyUI's change what it computes, or its weight cannot be read.
    """
    # hooks may be set at any time: a training adapter's are
    if layer._forward_hooks or layer._forward_pre_hooks:  # noqa: SLF001
        return False
    if type(layer) is nn.Linear and is_plain(layer):
        return True
    if getattr(layer, "weight_function", None) or getattr(layer, "weight_lowvram_function", None):
        return False
    return hasattr(layer, "input_gradient") or is_plain(layer) or _is_readable(layer)


def is_plain(layer: Any) -> bool:
    """Whether it is torch's own, with a weight that products take as it is."""
    if type(layer) is nn.Linear and "dequantize" not in vars(layer):  # to ask for what is not there takes long
        return _is_dense(layer.weight)
    return isinstance(layer, nn.Linear) and _is_dense(layer.weight) and not hasattr(layer, "dequantize")


def is_own(layer: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether the output of a linear layer belongs to us, so that it can be added to."""
    known = isinstance(layer, nn.Linear) or hasattr(layer, "input_gradient")
    return known and y.is_contiguous() and y is not x and not y.is_inference()


def add_input_gradient(layer: Any, gradient: Tensor, total: Tensor | None) -> Tensor:
    """total + g W, in g's precision.

    Args:
        gradient: (T, out)
        total: (T, in), which is added to in place; None is zero.

    Raises:
        AdapterError: if the weight cannot be read.
    """
    if type(layer) is not nn.Linear and hasattr(layer, "input_gradient"):
        added: Tensor = layer.input_gradient(gradient)
        return added if total is None else total.add_(added)
    weight = (layer.weight if is_plain(layer) else dense_weight(layer)).to(gradient.device, gradient.dtype)
    return gradient @ weight if total is None else total.addmm_(gradient, weight)


def _is_dense(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.itemsize > 1


def _is_readable(layer: nn.Module) -> bool:
    found = _READABLE.get(layer)
    if found is None:
        try:
            found = dense_weight(layer) is not None
        except AdapterError:
            found = False
        _READABLE[layer] = found
    return found


_READABLE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""To find out costs as much as to read it."""
