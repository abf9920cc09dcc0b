"""One weight as a file holds it, and what it stands for: fp8 and int8 have scales, and int8 may be rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import BaseModelError
from ..names import Place

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...memory.formats import Packed


@dataclass(frozen=True)
class Stored:
    """Views of a file; whoever holds one holds the file's pages."""

    values: Tensor
    scale: Tensor | None = None
    """fp32, of the whole weight or of each row (rows, 1)."""
    rotation: int = 1
    """Columns that were rotated together (ConvRot); 1: none."""

    def at(self, place: Place, shape: torch.Size) -> Stored:
        """The part of a stored tensor that is one weight of a model, in the model's shape."""
        scale = self.scale
        if scale is not None and scale.numel() > 1:
            scale = _rows(scale.reshape(-1, 1), place)
        return Stored(_rows(self.values, place).reshape(shape), scale, self.rotation)

    def dense(self, device: torch.device) -> Tensor:
        """The weight: in the file's precision, or in fp32 (and then on the device, if that is a GPU) from 8 bits."""
        import torch

        from ...memory.formats.rotation import rotated

        if self.values.element_size() > 1:
            return self.values
        # only CUDA and the CPU know fp8, and CUDA turns it back faster
        found = (self.values.to(device) if device.type == "cuda" else self.values).to(torch.float32)
        if self.scale is not None:
            found *= self.scale.to(found.device)
        return rotated(found, self.rotation)

    def packed(self, name: str) -> Packed | None:
        """The weight in a format of ours without unpacking it, where the file's is the same; None where it is not."""
        import torch

        from ...memory.formats import Packed
        from ...memory.formats.rotation import block_of

        kind = {torch.int8: "int8", torch.float8_e4m3fn: "float8"}.get(self.values.dtype)
        block = block_of(self.values.shape[1]) if kind == "int8" else 1
        if kind != name or self.rotation != block:
            return None
        rows, columns = self.values.shape
        scale = torch.ones(1) if self.scale is None else self.scale.float()
        parts = {"codes": self.values.clone(), "scale": scale.expand(rows, 1).clone()}
        try:
            return Packed.from_tensors(name, (rows, columns), parts)
        except BaseModelError:  # rows so short that the format is not used for them
            return None


def _rows(stored: Tensor, place: Place) -> Tensor:
    """The part of a stored tensor that is one weight; a view."""
    import torch

    if place.total > 1:
        unit = stored.shape[0] // place.total
        stored = stored[place.start * unit : place.stop * unit]
    if place.swap_halves:
        stored = torch.cat(stored.chunk(2)[::-1])
    return stored.t() if place.transposed else stored
