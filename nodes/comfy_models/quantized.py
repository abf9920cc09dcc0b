"""Layers with quantized weights: the mode that they can be moved in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_loaded(model: nn.Module) -> Iterator[None]:
    """The mode in which a model was loaded: inference mode in a graph.

    ComfyUI's quantized layers that are moved in another can afterwards not be moved in the first.
    """
    weight = next(model.parameters(), None)
    with torch.inference_mode(weight is not None and weight.is_inference()), torch.no_grad():
        yield
