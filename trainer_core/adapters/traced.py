"""LoRA on linear layers as plain operations, in the forms that a compiler does best; `fused` is for who runs them as
they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .frozen import is_plain, without_graph
from .operations import with_gradient
from .working import computing_dtype

if TYPE_CHECKING:
    from .fused import LoraLayer


def low_ranks(layers: Sequence[LoraLayer], x: Tensor) -> list[Tensor]:
    """The outputs of linear layers with their LoRAs, all for x (…, in): W x + b + h (scale · B)ᵀ, h = A x.

    Without dropout the layers have one down-projection. The scale is B's, since a compiler writes two gradients of an
    output (…, out) if only one of its parts is scaled. B is turned, since hᵀ g is a faster product than gᵀ h.
    """
    if len(layers) > 1 and any(layer.dropout.mask is not None for layer in layers):
        return [y for layer in layers for y in low_ranks([layer], x)]
    dtype = computing_dtype(x)
    downs = [layer.trained["lora_A.weight"].to(dtype) for layer in layers]
    down = downs[0] if len(downs) == 1 else torch.cat(downs)
    hs = F.linear(layers[0].dropout(x), down).split([len(one) for one in downs], -1)
    return [_output(layer, x, h) for layer, h in zip(layers, hs, strict=True)]


def _output(layer: LoraLayer, x: Tensor, h: Tensor) -> Tensor:
    base: Any = layer.base_layer
    up, scale = layer.trained["lora_B.weight"], layer.scale * layer.strength
    scaled = up if scale == 1 else up * scale  # a compiler would multiply by 1, and the gradient, too
    added = h @ scaled.to(h.dtype).T.contiguous()
    if is_plain(base) and without_graph(base):
        y = F.linear(x, base.weight)
        if base.bias is not None:  # added up with the rest: a product would begin with copies of it
            added = added + base.bias
    else:
        y = with_gradient(base, layer.operation, x, base(x))
    return (y + added).to(y.dtype)
