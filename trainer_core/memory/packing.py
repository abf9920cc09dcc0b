"""Which layers of a frozen model are packed, and how: one weight after the other, made once and then read from a cache.

Embedders, norms and the last layer stay as they are: they are few, and errors in them reach everything. Modulation is a
quarter of some models (FLUX.1), and is held in int8 whatever the others are: that changes no prediction by more than
bf16 does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from ..data.cache import TensorCache, key_of
from ..errors import BaseModelError, SaveError
from ..units import part_of, size

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .formats import Packed
    from .packed_linear import PackedLinear

_BRANCH = ("low_rank_down", "low_rank_up")
_FEW = 16
"""Outputs: a layer with fewer chooses what others compute, as routers do, and costs nothing."""
_MODULATION_IN = "int8"
_VERSION = 1
"""Of what is in the cache: a higher one when the same weight is packed otherwise."""


@dataclass(frozen=True)
class Packing:
    """How one model's weights are packed."""

    name: str
    """Of the format."""
    mark: str = ""
    """Changes with the model's weights."""
    cache: TensorCache | None = None
    """Where packed weights are kept for the next start."""
    low_rank: int = 0
    """Rank of the part of each weight that is not packed but stays beside it in bf16."""
    device: torch.device | None = None
    """Where weights are packed, if that is not where they come to lie: another one may round otherwise."""

    def layers(self, model: nn.Module) -> dict[str, tuple[nn.Module, Packing]]:
        """The linear layers of a model's blocks by path, with how each is packed; routers are not."""
        from ..adapters.operations import layers_of
        from .blocks import MODULATION, blocks_of

        modulation = replace(self, name=_MODULATION_IN, low_rank=0)
        return {
            f"{block}.{path}": (layer, modulation if MODULATION.fullmatch(path) else self)
            for block, module in blocks_of(model).items()
            for path, (layer, operation) in layers_of(module).items()
            if not operation.kernel and operation.outputs >= _FEW
        }

    def cached(self, path: str, layer: nn.Module, dtype: torch.dtype, device: torch.device) -> PackedLinear | None:
        """A layer with its weight from the cache, on the device; None if it is not there, or is none.

        Args:
            path: of the layer in its model.
            layer: has the sizes and the bias, which stays where it is.
            dtype: the precision that the weight is said to have.
        """
        from .formats import Packed, format_of

        found = self.cache and self.cache.get(self._key(path, device))
        if not found:
            return None
        shape = shape_of(layer)
        found = {name: part.to(device) for name, part in found.items()}
        branch = [found.pop(name, None) for name in _BRANCH]
        try:
            packed = Packed.from_tensors(format_of(self.name, shape), shape, found)
        except BaseModelError:
            return None
        return packed_layer(packed, layer, dtype, branch)

    def packed(self, path: str, weight: Tensor, layer: nn.Module, dtype: torch.dtype) -> PackedLinear:
        """A layer with its weight (out, in) packed where that is; also in the cache from then on."""
        import torch

        from .formats import encode
        from .low_rank import largest

        branch: list[Tensor] = []
        if self.low_rank:
            branch = [part.to(torch.bfloat16) for part in largest(weight.float(), self.low_rank)]
            weight = torch.addmm(weight.float(), branch[1].float(), branch[0].float(), alpha=-1)
        packed = encode(weight, self.name)
        if self.cache is not None:
            parts = packed.tensors() | dict(zip(_BRANCH, branch, strict=False))
            with contextlib.suppress(SaveError):  # a full disk, or one that may only be read: packed again next time
                self.cache.put(self._key(path, weight.device), {name: part.cpu() for name, part in parts.items()})
        return packed_layer(packed, layer, dtype, branch)

    def _key(self, path: str, device: torch.device) -> str:
        return key_of("packed", _VERSION, self.name, self.low_rank, self.mark, path, device.type)


def packed_layer(
    packed: Packed, layer: nn.Module, dtype: torch.dtype, branch: Sequence[Tensor | None] = ()
) -> PackedLinear:
    """A packed layer in the place of another, with its bias.

    Args:
        branch: the low-rank part beside the weight, as (down, up).
    """
    from .packed_linear import PackedLinear

    made = PackedLinear(packed, cast("Tensor | None", getattr(layer, "bias", None)), dtype)
    for name, part in zip(_BRANCH, branch, strict=False):
        setattr(made, name, part)
    return made.train(layer.training)


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

    for path, (layer, how) in packing.layers(model).items():
        if stays(path, layer):
            continue
        with torch.no_grad():
            own = how.cached(path, layer, dtype, device)
            if own is None:
                own = how.packed(path, dense_weight(layer).to(device), layer, dtype)
        for hook in layer._forward_hooks.values():  # noqa: SLF001 - torch has no other way to move one
            own.register_forward_hook(hook)
        model.set_submodule(path, own.to(device_of(layer)))


def described(
    model: nn.Module,
    packing: Packing,
    dtype: torch.dtype,
    stays: Callable[[str, nn.Module], bool] = lambda path, layer: False,  # noqa: ARG005
) -> str:
    """What packing makes of a model, such as "6bit, 148 layers (8.6 of 11.9 billion weights): 22.2 GB → 12.6 GB"."""
    from .formats import Packed, format_of

    layers = [(shape_of(layer), how) for path, (layer, how) in packing.layers(model).items() if not stays(path, layer)]
    count, whole = sum(math.prod(shape) for shape, _ in layers), sum(one.numel() for one in model.parameters())
    before = whole * dtype.itemsize
    after = before - count * dtype.itemsize
    for shape, how in layers:
        after += Packed.blank(format_of(how.name, shape), shape, "meta").nbytes
        after += 2 * min(how.low_rank, *shape) * sum(shape)
    return f"{packing.name}, {len(layers)} layers ({part_of(count, whole)}weights): {size(before)} → {size(after)}"


def outline(model: nn.Module, packing: Packing, dtype: torch.dtype) -> None:
    """Replaces the layers of a model on the meta device by packed ones there: with their sizes, at no cost."""
    import torch

    from .formats import Packed, format_of

    for path, (layer, how) in packing.layers(model).items():
        rows, columns = shape = shape_of(layer)
        rank = min(how.low_rank, rows, columns)
        empty = [torch.empty(size, dtype=torch.bfloat16, device="meta") for size in ((rank, columns), (rows, rank))]
        packed = Packed.blank(format_of(how.name, shape), shape, "meta")
        model.set_submodule(path, packed_layer(packed, layer, dtype, empty if rank else ()))


def shape_of(layer: Any) -> tuple[int, int]:
    """(out, in)"""
    return layer.out_features, layer.in_features
