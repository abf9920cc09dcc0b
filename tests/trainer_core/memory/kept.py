"""What stays in memory between a forward and a backward pass."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from trainer_core.adapters.operations import layers_of


def weights_kept(model: nn.Module, forward: Callable[[], Any]) -> set[tuple[int, ...]]:
    """Shapes of a model's weights of which something that was not there before is there after a forward pass.

    Args:
        forward: gives what the backward pass begins at. None of its activations may be as a weight is.
    """
    shapes = {operation.weight_shape for _, operation in layers_of(model).values()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}
    before = {place for tensor in _alive() for place in _places(tensor)}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        begin = forward()
    after = [*saved, *_alive()]
    assert begin is not None
    return {tuple(one.shape) for one in after if tuple(one.shape) in shapes and not before.issuperset(_places(one))}


def _alive() -> list[Tensor]:
    gc.unfreeze()  # those of earlier tests, too
    gc.collect()
    # a compiler's fake ones, of other tests, may have sizes that are symbols
    return [one for one in gc.get_objects() if isinstance(one, Tensor) and not isinstance(one, FakeTensor)]


def _places(tensor: Tensor) -> set[int]:
    """Addresses of what a tensor lies in; a quantized one lies in several."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return {place for name in names for place in _places(getattr(tensor, name))}
    try:
        return {tensor.untyped_storage().data_ptr()} - {0}
    except (RuntimeError, NotImplementedError):  # without memory
        return set()
