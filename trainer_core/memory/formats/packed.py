"""A weight in one of the formats, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import BaseModelError, ConfigError, did_you_mean
from .affine import SixBit
from .codebook import FIVE, FOUR, THREE, TWO
from .float8 import Float8
from .format import Format
from .int8 import Int8
from .nf4 import Nf4
from .rotation import rotated
from .uint import Uint

_FORMATS: dict[str, Format] = {
    "float8": Float8(),
    "int8": Int8(),
    "6bit": SixBit(),
    "5bit": FIVE,
    "4bit": FOUR,
    "nf4": Nf4(),
    "uint4": Uint(4),
    "3bit": THREE,
    "uint3": Uint(3),
    "2bit": TWO,
}
NAMES = tuple(_FORMATS)
"""From the most bits to the fewest; `model.quantization` has the same names."""
_SHORT = "int8"
"""What takes the place of a format whose groups are longer than a row."""
_CHUNK = {"cpu": 2**18}
"""Weights that are encoded at once: few, so that they stay in a processor's cache, and memory stays small."""
_CHUNK_ELSEWHERE = 2**24


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight (out, in) in few bits."""

    name: str
    """Of the format that it is in: not always the one that was asked for, see `format_of`."""
    shape: tuple[int, int]
    parts: Mapping[str, Tensor]

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in), on the device where its parts are."""
        if self.rotation == 1:
            return self.decode_rotated(dtype)
        return rotated(self.decode_rotated(torch.promote_types(dtype, torch.float32)), self.rotation).to(dtype)

    def decode_rotated(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as it is held: W R. It costs less than the weight, and x Wᵀ = rotated(x) (W R)ᵀ."""
        return _FORMATS[self.name].decode(dict(self.parts), self.shape[1], dtype)

    @property
    def rotation(self) -> int:
        """How many columns are rotated together; 1 is none."""
        return _FORMATS[self.name].rotation(self.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """What stands for it, by name: what goes to disk."""
        return dict(self.parts)

    @classmethod
    def from_tensors(cls, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> Packed:
        """The weight that some tensors stand for.

        Raises:
            BaseModelError: if they are not those of the format for this shape.
        """
        expected = cls.blank(name, shape, "meta").parts
        if wrong := {
            part
            for part in {*expected, *tensors}
            if part not in expected
            or part not in tensors
            or (tensors[part].shape, tensors[part].dtype) != (expected[part].shape, expected[part].dtype)
        }:
            names = ", ".join(sorted(wrong))
            raise BaseModelError(f"not the tensors of a {name} weight {shape[0]} x {shape[1]}: {names} differ")
        return cls(name, shape, dict(tensors))

    @classmethod
    def blank(cls, name: str, shape: tuple[int, int], device: torch.device | str) -> Packed:
        """A weight whose tensors are not yet filled; on `meta`, to know their sizes."""
        return cls(name, shape, _FORMATS[name].blank(*shape, torch.device(device)))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Scales included."""
        return 8 * self.nbytes / math.prod(self.shape)


def format_of(name: str, shape: tuple[int, int]) -> str:
    """The format that a weight of a shape gets when one is asked for: int8 where rows are shorter than its groups.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in _FORMATS:
        raise ConfigError(f"no weights are held in {name}: {did_you_mean(name, NAMES)}")
    return name if shape[1] >= _FORMATS[name].group else _SHORT


@torch.no_grad()
def encode(weight: Tensor, name: str) -> Packed:
    """A weight (out, in) in a format; in any floating-point precision, on any device.

    Raises:
        ConfigError: if no format has that name.
        BaseModelError: if the weight is no matrix, is empty, or has values that are not finite.
    """
    if weight.ndim != 2 or not weight.numel() or not weight.is_floating_point():
        raise BaseModelError(
            f"only matrices of numbers are packed, and this weight is {tuple(weight.shape)}, {weight.dtype}"
        )
    rows, columns = weight.shape
    name = format_of(name, (rows, columns))
    found = Packed.blank(name, (rows, columns), weight.device)
    step = max(1, _CHUNK.get(weight.device.type, _CHUNK_ELSEWHERE) // columns)
    for start in range(0, rows, step):
        chunk = weight[start : start + step].float()
        if not chunk.isfinite().all():
            raise BaseModelError(
                "the weight has values that are not finite: its file is damaged or was written wrongly"
            )
        for part, value in _FORMATS[name].encode(rotated(chunk, found.rotation)).items():
            found.parts[part][start : start + step] = value
    return found
