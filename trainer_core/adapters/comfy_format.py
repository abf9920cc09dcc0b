"""A LoRA in ComfyUI's names and back: `diffusion_model.<path>.lora_A.weight`, `.lora_B.weight`, `.alpha`.

Where ComfyUI fuses layers that we train apart (q, k, v), the file holds one fused LoRA that means exactly the same: the
A's are stacked, the B's become blocks on a diagonal, and alpha grows with the rank so that alpha / rank stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import AdapterError

if TYPE_CHECKING:
    from ..families.base import Base, ComfyModule

PREFIX = "diffusion_model."
_SUFFIXES = {
    ".lora_A.weight": "down",
    ".lora_down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}


@dataclass(frozen=True)
class LowRank:
    """One layer's change: scale · up @ down, with down (r, in) and up (out, r)."""

    down: Tensor
    up: Tensor
    scale: float


def to_comfy(
    weights: dict[str, tuple[Tensor, Tensor]], scale: float, base: Base, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A trained LoRA as ComfyUI's tensors.

    Args:
        weights: module path → (A (rank, in), B (out, rank)).
        scale: alpha / rank, the same for all.
        base: whose `comfy_module` names the layers.
        dtype: of the file.
    """
    groups: dict[str, list[tuple[ComfyModule, Tensor, Tensor]]] = {}
    for path, (down, up) in weights.items():
        place = base.comfy_module(path)
        groups.setdefault(place.path, []).append((place, down, up))
    tensors = {}
    for path, parts in groups.items():
        down, up = _fused(sorted(parts, key=lambda part: part[0].start))
        tensors[f"{PREFIX}{path}.lora_A.weight"] = down.to(dtype).contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = up.to(dtype).contiguous()
        tensors[f"{PREFIX}{path}.alpha"] = torch.tensor(scale * down.shape[0], dtype=torch.float32)
    return tensors


def _fused(parts: list[tuple[ComfyModule, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    place, down, up = parts[0]
    if place.total == 1:
        return down, torch.cat(up.chunk(2)[::-1]) if place.swap_halves else up
    unit = up.shape[0] // (place.stop - place.start)
    fused = up.new_zeros(unit * place.total, sum(part[1].shape[0] for part in parts))
    column = 0
    for place, _, up in parts:
        fused[unit * place.start : unit * place.stop, column : column + up.shape[1]] = up
        column += up.shape[1]
    return torch.cat([down for _, down, _ in parts]), fused


def parse(tensors: dict[str, Tensor]) -> dict[str, LowRank]:
    """ComfyUI path → its change, from a file's tensors (lora_A/lora_B or lora_down/lora_up, with or without alpha).

    Raises:
        AdapterError: for keys that are no LoRA of a `diffusion_model`, or that lack their other half.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        suffix = next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), None)
        if suffix is None or not key.startswith(PREFIX):
            raise AdapterError(f"{key!r}: is no LoRA key in ComfyUI's names ({PREFIX}….lora_A.weight)")
        found.setdefault(key[len(PREFIX) : -len(suffix)], {})[_SUFFIXES[suffix]] = value
    changes = {}
    for path, parts in found.items():
        if "down" not in parts or "up" not in parts:
            raise AdapterError(f"{path}: the LoRA file holds only one of lora_A and lora_B")
        down, up = parts["down"], parts["up"]
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise AdapterError(f"{path}: lora_A and lora_B do not fit each other: their shapes are {shapes}")
        rank = down.shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else float(rank)  # ComfyUI: no alpha means scale 1
        changes[path] = LowRank(down.float(), up.float(), alpha / rank)
    if not changes:
        raise AdapterError("the file holds no LoRA layers")
    return changes


def for_modules(changes: dict[str, LowRank], denoiser: nn.Module, base: Base) -> dict[str, LowRank]:
    """Module path of our denoiser → its change; a fused layer's LoRA is cut into its parts' rows.

    Raises:
        AdapterError: if the file has a layer that this base lacks, or shapes differ.
    """
    ours: dict[str, LowRank] = {}
    used = set()
    for full_path, module in denoiser.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        path = full_path.removesuffix(".base_layer")  # peft wraps the layers that it adapts
        try:
            place = base.comfy_module(path)
        except AdapterError:
            continue
        change = changes.get(place.path)
        if change is None:
            continue
        up = torch.cat(change.up.chunk(2)[::-1]) if place.swap_halves else change.up
        unit = up.shape[0] // place.total
        up = up[unit * place.start : unit * place.stop]
        if up.shape[0] != module.out_features or change.down.shape[1] != module.in_features:
            raise AdapterError(
                f"{place.path}: the LoRA's shape, {change.up.shape[0]}x{change.down.shape[1]}, does not fit this base"
            )
        used.add(place.path)
        ours[path] = LowRank(change.down, up, change.scale)
    if missing := sorted(changes.keys() - used):
        raise AdapterError(f"the LoRA was made for another base: it has {missing[0]} and {len(missing) - 1} more")
    return ours


@contextmanager
def applied(denoiser: nn.Module, changes: dict[str, LowRank], strength: float) -> Iterator[None]:
    """The denoiser with a LoRA added in its forward passes, at a strength; nothing is merged, so nothing is rounded."""
    modules = dict(denoiser.named_modules())
    handles = []
    try:
        for path, change in changes.items():
            weight = modules[path].weight
            down, up = (part.to(weight.device, torch.float32) for part in (change.down, change.up))
            handles.append(modules[path].register_forward_hook(_added(down, up, change.scale * strength)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added(down: Tensor, up: Tensor, scale: float):  # type: ignore[no-untyped-def]
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = nn.functional.linear(nn.functional.linear(inputs[0].float(), down), up)
        return (output.float() + scale * change).to(output.dtype)

    return hook


def fitted(change: LowRank, rank: int, scale: float, fresh_down: Tensor) -> tuple[Tensor, Tensor]:
    """A change as (A, B) of a rank and scale, to go on training from; what it does is unchanged.

    Columns of B that are zero (the other parts of a fused layer) are dropped; rows missing to the rank come from
    `fresh_down` (rank, in), with zero columns in B.

    Raises:
        AdapterError: if the change needs more than `rank`.
    """
    kept = (change.up != 0).any(0).nonzero().flatten()
    if len(kept) > rank:
        raise AdapterError(f"adapter.warm_start: the file's rank is {len(kept)}, the job's is {rank}. Set rank to it")
    down, up = fresh_down.clone(), change.up.new_zeros(change.up.shape[0], rank)
    down[: len(kept)] = change.down[kept]
    up[:, : len(kept)] = change.up[:, kept] * (change.scale / scale)
    return down, up
