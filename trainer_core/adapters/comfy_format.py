"""Adapters as files that ComfyUI reads.

Where ComfyUI fuses layers that we train apart (q, k, v), the file of a LoRA holds one fused LoRA that means exactly the
same: the A's are stacked, the B's become blocks on a diagonal, and alpha grows with the rank so that alpha / rank
stays. Other kinds keep diffusers' names there, which ComfyUI maps to rows of the fused layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .deltas import Delta, Hadamard, Kronecker, LowRank, swapped
from .key_names import PARTS

if TYPE_CHECKING:
    from ..families.names import Named, Place
    from ..families.spec import LoraNames


def to_comfy(deltas: Mapping[str, Delta], base: Named, dtype: torch.dtype) -> dict[str, Tensor]:
    """A trained adapter as ComfyUI's tensors.

    Args:
        deltas: module path → its delta; a text encoder's begins with the encoder's name, `text_encoder.`.
        base: whose `lora_place` and `spec.lora` name the layers.
        dtype: of the file; alpha and DoRA's scale stay fp32, since the scale multiplies the whole weight.
    """
    return in_original_names(deltas, base.spec.lora, base.lora_place, dtype)


def in_original_names(
    deltas: Mapping[str, Delta], names: LoraNames, place_of: Callable[[str], Place], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The same in other names: `place_of` says where the denoiser's layers lie, `names` how keys begin and end."""
    tensors: dict[str, Tensor] = {}
    groups: dict[str, list[tuple[Place, LowRank]]] = {}
    for path, delta in deltas.items():
        root = next((root for root in names.text_encoders if path.startswith(f"{root}.")), "")
        if root:
            tensors |= _written(names.key(path.removeprefix(f"{root}."), root), delta, names.kohya, dtype)
            continue
        place = place_of(path)
        if isinstance(delta, LowRank) and delta.dora_scale is None:
            groups.setdefault(place.name, []).append((place, delta))
        elif place.total > 1 or (place.swap_halves and isinstance(delta, Kronecker)):
            tensors |= _written(PARTS + path, delta, names.kohya, dtype)
        else:
            whole = swapped(delta) if place.swap_halves else delta
            tensors |= _written(names.key(place.name), whole, names.kohya, dtype)
    for path, parts in groups.items():
        fused = _fused(sorted(parts, key=lambda part: part[0].start))
        tensors |= _written(names.key(path), fused, names.kohya, dtype)
    return tensors


def _fused(parts: list[tuple[Place, LowRank]]) -> LowRank:
    place, delta = parts[0]
    if place.total == 1:
        whole = swapped(delta) if place.swap_halves else delta
        assert isinstance(whole, LowRank)
        return whole
    unit = delta.up.shape[0] // (place.stop - place.start)
    rank = sum(part.down.shape[0] for _, part in parts)
    up, column = delta.up.new_zeros(unit * place.total, rank), 0
    for place, part in parts:
        own = part.up if part.scale == delta.scale else part.up * (part.scale / delta.scale)
        up[unit * place.start : unit * place.stop, column : column + part.up.shape[1]] = own
        column += part.up.shape[1]
    return LowRank(torch.cat([part.down for _, part in parts]), up, delta.scale)


def _written(name: str, delta: Delta, kohya: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """One layer's tensors; ComfyUI divides alpha by the rank it sees, and takes 1 where it sees none."""
    if isinstance(delta, LowRank):
        down, up = ("lora_down.weight", "lora_up.weight") if kohya else ("lora_A.weight", "lora_B.weight")
        parts, alpha = {down: delta.down, up: delta.up_weight}, delta.scale * delta.rank
    elif isinstance(delta, Hadamard):
        parts, alpha = delta.named(), delta.scale * delta.rank
    elif delta.w2 is None:
        parts, alpha = delta.named(), delta.scale * delta.factors[1].shape[0]
    else:
        parts, alpha = {**delta.named(), "lokr_w1": delta.w1 * delta.scale}, 1.0
    tensors = {f"{name}.{part}": value.to(dtype).contiguous() for part, value in parts.items()}
    tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    if isinstance(delta, LowRank) and delta.dora_scale is not None:
        rows = (-1, *(1 for _ in delta.down.shape[1:]))
        tensors[f"{name}.dora_scale"] = delta.dora_scale.float().reshape(rows).contiguous()
    return tensors
