"""The one record of names: where a layer or a weight of ours lies in another program's model or file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..config import ModelConfig
    from .spec import FamilySpec


@dataclass(frozen=True)
class Place:
    """Where a layer, or one weight of it, lies in the original implementation (whose names ComfyUI keeps) or in a file.

    It may be fused with others there: then it is the rows [start, stop) of `total`, counted in units of the smallest
    part (of a fused q, k, v each is one unit of three).
    """

    name: str
    start: int = 0
    stop: int = 1
    total: int = 1
    swap_halves: bool = False
    """It is kept as (shift, scale) there, and as (scale, shift) here."""
    transposed: bool = False
    """Weights only."""


Naming = Callable[[str], Place]
"""Name of a weight in diffusers' or transformers' model → where the file keeps it."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor → its shape."""


class Named(Protocol):
    """What files of LoRAs ask of a `Base`: whose they are, and what its layers are called."""

    spec: FamilySpec
    config: ModelConfig

    def denoiser_fingerprint(self) -> str: ...

    def lora_place(self, path: str) -> Place: ...

    def original_modules(self, shapes: Shapes) -> dict[str, str]: ...
