"""LoRA files of any tool as deltas: read, and put where our layers are.

What a file's layer does to fused layers is cut into the rows of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from .deltas import Delta, Deltas, Hadamard, Kronecker, LowRank, changed_norms, over_rows, row_norms, swapped
from .key_names import OTHER_KINDS, names_of, split_key, split_text
from .operations import Operation, dense_weight, layers_of, weight_shapes

if TYPE_CHECKING:
    from ..families.names import Named, Place


def parse(tensors: Mapping[str, Tensor]) -> Deltas:
    """Name of a layer in the file → its delta, fp32. The names are still the file's: `for_modules` finds our layers.

    Raises:
        AdapterError: for keys of another kind of adapter, or that lack their other half, or no number as alpha.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        split = split_key(key)
        if split is None:
            kind = next((kind for kind, name in OTHER_KINDS.items() if name.search(key)), None)
            what = f"is of the kind {kind}, which no adapter here represents" if kind else "is no key of a LoRA"
            raise AdapterError(f"{key!r}: {what}")
        if split[1] == "alpha":
            _check_alpha(key, value)
        found.setdefault(split[0], {})[split[1]] = value if split[1] == "alpha" else value.float()
    if not found:
        raise AdapterError("the file holds no LoRA layers")
    return {name: _read(name, parts) for name, parts in found.items()}


def _read(name: str, parts: dict[str, Tensor]) -> Delta:
    try:
        if "hada_w1_a" in parts:
            return _hadamard(name, parts)
        if "lokr_w1" in parts or "lokr_w1_a" in parts:
            return _kronecker(name, parts)
        return _low_rank(name, parts)
    except KeyError as missing:
        raise AdapterError(f"{name}: the file lacks a part of this layer ({missing.args[0]})") from None
    except RuntimeError:
        shapes = ", ".join(f"{part} {tuple(value.shape)}" for part, value in parts.items())
        raise AdapterError(f"{name}: the parts of this layer do not fit each other: {shapes}") from None


def _check_alpha(key: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise AdapterError(f"{key}: alpha is one number, and this has shape {tuple(value.shape)}")
    if not math.isfinite(value.item()):
        raise AdapterError(f"{key}: alpha is {value.item()}, which is no finite number")


def _scale(parts: dict[str, Tensor], rank: int) -> float:
    """As ComfyUI: no alpha means scale 1."""
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _low_rank(name: str, parts: dict[str, Tensor]) -> LowRank:
    if "down" not in parts or "up" not in parts:
        raise AdapterError(f"{name}: the LoRA file holds only one of lora_A and lora_B")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0] if down.dim() else 0
    if down.dim() < 2 or up.dim() < 2 or not rank or up.numel() != up.shape[0] * up.shape[1]:
        raise AdapterError(f"{name}: its shapes {tuple(down.shape)} and {tuple(up.shape)} are those of no LoRA")
    up = up.flatten(1)
    if "mid" in parts:  # LyCORIS' Tucker form of a convolution: the kernel is in the middle
        down = torch.einsum("mnhw,ni->mihw", parts["mid"], down.flatten(1))
    if down.shape[0] != up.shape[1]:
        shapes = f"{tuple(parts['down'].shape)} and {tuple(parts['up'].shape)}"
        raise AdapterError(f"{name}: lora_A and lora_B do not fit each other: their shapes are {shapes}")
    delta = LowRank(down, up, _scale(parts, rank))
    for part in ("dora_scale", "magnitude"):
        if part in parts:
            if parts[part].numel() != up.shape[0] or (part == "dora_scale" and parts[part].shape[0] != up.shape[0]):
                raise AdapterError(f"{name}: this DoRA scales its inputs; only those that scale outputs can be used")
            scaled: dict[str, Any] = {part: parts[part].flatten()}
            delta = replace(delta, **scaled)
    return delta


def _kronecker(name: str, parts: dict[str, Tensor]) -> Kronecker:
    if "dora_scale" in parts:
        raise AdapterError(f"{name}: a LoKr with DoRA's scale cannot be represented")
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    rank = parts["lokr_w1_b"].shape[0] if "lokr_w1" not in parts else None
    w2, w2_a, w2_b = (parts.get(f"lokr_{part}") for part in ("w2", "w2_a", "w2_b"))
    if w2 is None:
        w2_a, w2_b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        rank = w2_b.shape[0]
        if "lokr_t2" in parts:
            w2 = torch.einsum("ijhw,ip,jr->prhw", parts["lokr_t2"], w2_a, w2_b)
            w2_a = w2_b = None
        else:
            _ = w2_a @ w2_b.flatten(1)  # whether they fit
    return Kronecker(w1, w2, w2_a, w2_b, 1.0 if rank is None else _scale(parts, rank))


def _hadamard(name: str, parts: dict[str, Tensor]) -> Hadamard:
    for part, what in (("hada_t1", "in Tucker form"), ("dora_scale", "with DoRA's scale")):
        if part in parts:
            raise AdapterError(f"{name}: a LoHa {what} cannot be represented")
    w1_a, w1_b, w2_a, w2_b = (parts[f"hada_{part}"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    _ = (w1_a @ w1_b) * (w2_a @ w2_b)  # whether they fit
    return Hadamard(w1_a, w1_b, w2_a, w2_b, _scale(parts, w1_b.shape[0]))


# --- our layers ------------------------------------------------------------------------------------------------------


def for_modules(deltas: Mapping[str, Delta], model: nn.Module, base: Named, root: str = "") -> Deltas:
    """Module path of our model → its delta; a fused layer's delta is cut into its parts' rows.

    Args:
        deltas: by their names in a file, as `parse` gives them.
        model: the denoiser, or the text encoder that `root` names.

    Raises:
        AdapterError: if the file has a layer that this base lacks, or shapes differ.
    """
    ours = for_roots(deltas, {root: model}, base)
    return {path.removeprefix(f"{root}."): delta for path, delta in ours.items()} if root else ours


def for_roots(deltas: Mapping[str, Delta], roots: Mapping[str, nn.Module], base: Named) -> Deltas:
    """The same for several models at once; text encoders' layers come with their encoder's name before the path."""
    ours: Deltas = {}
    used = set()
    for root, model in roots.items():
        originals = {} if root else base.original_modules(weight_shapes(model))
        for path, (module, operation) in layers_of(model).items():
            for name, place in names_of(path, base, root, originals.get(path)):
                if name not in deltas:
                    continue
                used.add(name)
                ours[f"{root}.{path}" if root else path] = _for_module(name, deltas[name], place, module, operation)
                break
    if missing := sorted(deltas.keys() - used):
        text = split_text(dict.fromkeys(missing))[1]
        if len(text) == len(missing) and not any(roots):
            hint = (
                "are not adapted here. Switch adapter.text_encoders on"
                if base.spec.lora.text_encoders
                else f"no LoRA for {base.spec.title} adapts here. Use a LoRA of the denoiser alone"
            )
            raise AdapterError(
                f"the LoRA adapts text encoders too ({missing[0]} and {len(missing) - 1} more), which {hint}"
            )
        raise AdapterError(f"the LoRA was made for another base: it has {missing[0]} and {len(missing) - 1} more")
    return ours


def _for_module(name: str, delta: Delta, place: Place, module: nn.Module, operation: Operation) -> Delta:
    """A named layer's delta → that of our module, in the shapes that its operation asks for."""
    part = _rows(name, swapped(delta, name) if place.swap_halves else delta, place)
    out, into, *kernel = operation.weight_shape
    try:
        fits = part.size == (out, into * math.prod(kernel))
        if isinstance(part, Hadamard):
            shaped: Delta = part
        elif isinstance(part, Kronecker):
            columns = into // part.w1.shape[1]
            shaped = replace(
                part,
                w2=None if part.w2 is None else part.w2.reshape(-1, columns, *kernel),
                w2_b=None if part.w2_b is None else part.w2_b.reshape(-1, columns, *kernel),
            )
        else:
            shaped = replace(part, down=part.down.reshape(-1, into, *kernel))
            if fits and (part.dora_scale is not None or part.magnitude is not None):
                shaped = _with_norms(name, shaped, module)
    except (RuntimeError, ZeroDivisionError):
        fits = False
    if not fits:
        rows, columns = part.size
        raise AdapterError(f"{name}: the LoRA's shape, {rows}x{columns}, does not fit this base")
    return shaped


def _with_norms(name: str, delta: LowRank, module: nn.Module) -> LowRank:
    """A DoRA with what the file cannot tell: ‖W‖."""
    try:
        weight = dense_weight(module)
    except AdapterError as error:
        raise AdapterError(f"{name} is a DoRA, and {error}") from None
    norms = row_norms(weight).cpu()
    if delta.dora_scale is None:
        assert delta.magnitude is not None
        longer = changed_norms(weight.cpu(), norms, delta.down, delta.up, delta.scale)
        delta = replace(delta, dora_scale=delta.magnitude * norms / longer, magnitude=None)
    return replace(delta, norms=norms)


def _rows(name: str, delta: Delta, place: Place) -> Delta:
    """The rows of a fused layer that a place is."""
    if place.total == 1:
        return delta

    def cut(value: Tensor) -> Tensor:
        unit = value.shape[0] // place.total
        return value[unit * place.start : unit * place.stop]

    return over_rows(name, delta, cut, place.total)
