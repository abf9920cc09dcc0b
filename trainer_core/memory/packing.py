"""Which layers of a frozen model are packed, and how: one weight after the other, made once and then read from a cache.

Embedders, modulation, norms and the last layer stay as they are: they are few, and errors in them reach everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..data.cache import TensorCache, key_of
from ..errors import BaseModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .formats import Packed

_VERSION = 1
"""Of what is in the cache: a higher one when the same weight is packed otherwise."""
MODULATION = re.compile(
    r"(?:.*\.)?(?:\w*ada_?ln\w*|(?:\w+_)?mod(?:ulation)?(?:_\w+)?|mod[cx]+|\w*norm\d*(?:_\w+)?|emb_layers"
    r"|mapper(?:_\w+)?|time_pos_embed|time_emb_proj)(?:\..+)?",
    re.IGNORECASE,
)
"""What scales and shifts by the time or another condition, by its path in a block."""


def packable(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a model's blocks whose weights are packed, by path: all but modulation."""
    from ..adapters.operations import layers_of
    from .blocks import blocks_of

    return {
        f"{block}.{path}": layer
        for block, module in blocks_of(model).items()
        for path, (layer, operation) in layers_of(module).items()
        if not operation.kernel and not MODULATION.fullmatch(path)
    }


@dataclass(frozen=True)
class Packing:
    """How one model's weights are packed."""

    name: str
    """Of the format."""
    mark: str
    """Changes with the model's weights."""
    cache: TensorCache | None = None
    """Where packed weights are kept for the next start."""

    def cached(self, path: str, shape: tuple[int, int], device: torch.device) -> Packed | None:
        """A layer's weight (out, in) from the cache, on the device; None if it is not there, or is none."""
        from .formats import Packed, format_of

        found = self.cache and self.cache.get(self._key(path, device))
        if not found:
            return None
        try:
            packed = Packed.from_tensors(format_of(self.name, shape), shape, found)
        except BaseModelError:
            return None
        return _on(packed, device)

    def packed(self, path: str, weight: Tensor) -> Packed:
        """A layer's weight, packed where it is; also in the cache from then on."""
        from .formats import encode

        made = encode(weight, self.name)
        self.keep(path, made, weight.device)
        return made

    def keep(self, path: str, packed: Packed, device: torch.device) -> None:
        """Puts a weight into the cache that was packed on a device."""
        if self.cache is not None:
            self.cache.put(self._key(path, device), {name: part.cpu() for name, part in packed.tensors().items()})

    def _key(self, path: str, device: torch.device) -> str:
        return key_of("packed", _VERSION, self.name, self.mark, path, device.type)


def pack_in_place(
    model: nn.Module,
    packing: Packing,
    device: torch.device,
    dtype: torch.dtype,
    stays: Callable[[str, nn.Module], bool] = lambda path, layer: False,  # noqa: ARG005
) -> None:
    """Replaces the layers of a loaded model one by one. They come to lie where they were.

    Args:
        device: where they are packed.
        dtype: the precision that their weights are said to have.
        stays: whether a layer, at its path, is left as it is.

    Raises:
        AdapterError: if a weight cannot be read.
    """
    import torch

    from ..adapters.operations import dense_weight, device_of
    from .packed_linear import PackedLinear

    for path, layer in packable(model).items():
        if stays(path, layer):
            continue
        with torch.no_grad():
            packed = packing.cached(path, _shape(layer), device) or packing.packed(path, dense_weight(layer).to(device))
            own = PackedLinear(packed, getattr(layer, "bias", None), dtype).to(device_of(layer)).train(layer.training)
        for hook in layer._forward_hooks.values():  # noqa: SLF001 - torch has no other way to move one
            own.register_forward_hook(hook)
        model.set_submodule(path, own)


def outline(model: nn.Module, packing: Packing, dtype: torch.dtype) -> None:
    """Replaces the layers of a model on the meta device by packed ones there: with their sizes, at no cost."""
    from .formats import Packed, format_of
    from .packed_linear import PackedLinear

    for path, layer in packable(model).items():
        shape = _shape(layer)
        packed = Packed.blank(format_of(packing.name, shape), shape, "meta")
        model.set_submodule(path, PackedLinear(packed, getattr(layer, "bias", None), dtype))


def _shape(layer: Any) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def _on(packed: Packed, device: torch.device) -> Packed:
    return replace(packed, parts={name: part.to(device) for name, part in packed.parts.items()})
