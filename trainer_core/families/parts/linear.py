"""Linear layers that read the same tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def outputs(layers: Sequence[Any], x: Tensor) -> list[Tensor]:
    """Their outputs for x (…, in), such as queries, keys and values.

    Layers with LoRAs find out by themselves what they share, but not while they are compiled: they are then told.
    """
    together = getattr(layers[0], "outputs", None) if torch.compiler.is_compiling() else None
    return [layer(x) for layer in layers] if together is None else together(layers, x)
