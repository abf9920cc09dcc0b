"""Adapters as PEFT has them: the settings of its config classes, and tensors in the names of its layers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import AdapterError
from .deltas import Delta, Hadamard, Kronecker, LowRank, changed_norms
from .operations import dense_weight, operation_of


@dataclass(frozen=True)
class PeftAdapter:
    """What PEFT needs for one model."""

    kind: str
    """LoRA, DoRA, LoKr or LoHa"""
    settings: dict[str, Any]
    """Arguments of LoraConfig, LoKrConfig or LoHaConfig that differ from the defaults."""
    tensors: dict[str, Tensor]
    """`<module path>.lora_A.weight` and so on, fp32"""

    def config(self) -> Any:
        """The PeftConfig."""
        import peft

        classes = {"LoKr": peft.LoKrConfig, "LoHa": peft.LoHaConfig}
        return classes.get(self.kind, peft.LoraConfig)(**self.settings, inference_mode=True)


@dataclass(frozen=True)
class _Layer:
    rank: int
    scale: float
    tensors: dict[str, Tensor]


def to_peft(changes: Mapping[str, Delta], model: nn.Module) -> PeftAdapter:
    """The changes of one model's layers, by module path, as an adapter of PEFT's that does the same.

    Args:
        model: whose layers they are; DoRA needs its weights.

    Raises:
        AdapterError: for what PEFT has no adapter for, with the reason.
    """
    kinds = sorted({kind_of(delta) for delta in changes.values()})
    if len(kinds) > 1:
        raise AdapterError(f"the file mixes {' and '.join(kinds)}, and an adapter of PEFT is of one kind")
    (kind,) = kinds
    layers = {path: _layer(delta, model.get_submodule(path)) for path, delta in changes.items()}
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {path: _number(layer.scale * layer.rank) for path, layer in layers.items()}
    rank, alpha = _usual(ranks), _usual(alphas)
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha" if kind in ("LoRA", "DoRA") else "alpha": alpha,
        "target_modules": _targets(layers, model),
        # without the anchor a pattern also means the layers whose paths end like it
        "rank_pattern": {f"^{path}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{path}": value for path, value in alphas.items() if value != alpha},
    }
    if kind == "DoRA":
        settings["use_dora"] = True
    if kind == "LoKr":
        settings["decompose_factor"] = _factor(changes, model)
    return PeftAdapter(
        kind, settings, {f"{path}.{key}": value for path, one in layers.items() for key, value in one.tensors.items()}
    )


def kind_of(delta: Delta) -> str:
    """LoRA, DoRA, LoKr or LoHa."""
    if isinstance(delta, LowRank):
        return "LoRA" if delta.dora_scale is None else "DoRA"
    return "LoKr" if isinstance(delta, Kronecker) else "LoHa"


def _layer(delta: Delta, module: nn.Module) -> _Layer:
    if isinstance(delta, Hadamard):
        parts = {f"hada_{part}": getattr(delta, part) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
        return _Layer(delta.w1_b.shape[0], delta.scale, parts)
    if isinstance(delta, Kronecker):
        return _lokr(delta)
    kernel = (1,) * (delta.down.dim() - 2)
    parts = {"lora_A.weight": delta.down, "lora_B.weight": delta.up.reshape(*delta.up.shape, *kernel)}
    if delta.dora_scale is not None and delta.norms is not None:
        longer = changed_norms(dense_weight(module), delta.norms, delta.down, delta.up, delta.scale)
        magnitude = delta.dora_scale * (longer / delta.norms)  # the paper's m
        parts["lora_magnitude_vector"] = magnitude.reshape((1, -1, *kernel) if kernel else (-1,))
    return _Layer(delta.down.shape[0], delta.scale, parts)


def _lokr(delta: Kronecker) -> _Layer:
    """PEFT's w2 is whole where the rank is at least half of its larger side, and has two factors otherwise."""
    w2 = delta.w2
    if w2 is None:
        w2_a, w2_b = delta.factors
        rank = w2_b.shape[0]
        if rank < max(w2_a.shape[0], w2_b.shape[1]) / 2:
            return _Layer(rank, delta.scale, {"lokr_w1": delta.w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b.flatten(1)})
        w2 = (w2_a @ w2_b.flatten(1)).reshape(-1, *w2_b.shape[1:])
    rank = max(1, math.ceil(max(w2.shape[:2]) / 2))
    return _Layer(rank, delta.scale, {"lokr_w1": delta.w1, "lokr_w2": w2})


def _factor(changes: Mapping[str, Delta], model: nn.Module) -> int:
    """The `decompose_factor` with which PEFT cuts all layers as these LoKrs are cut.

    Raises:
        AdapterError: if there is none.
    """
    from peft.tuners.lokr.layer import factorization

    cuts: dict[tuple[int, int], str] = {}
    for path, delta in changes.items():
        assert isinstance(delta, Kronecker)
        operation = operation_of(model.get_submodule(path))
        assert operation is not None
        for size, factor in zip((operation.outputs, operation.inputs), delta.w1.shape, strict=True):
            cuts.setdefault((size, factor), path)

    def wrong(factor: int) -> tuple[int, int] | None:
        return next((cut for cut in cuts if factorization(cut[0], factor)[0] != cut[1]), None)

    candidates = (-1, *range(1, max(cut[1] for cut in cuts) + 1))
    found = next((factor for factor in candidates if wrong(factor) is None), None)
    if found is None:
        size, factor = wrong(-1) or next(iter(cuts))
        raise AdapterError(
            f"{cuts[size, factor]}: this LoKr cuts {size} channels into {factor} x {size // factor}; PEFT has one "
            "decompose_factor for all layers, and none cuts these as the file does"
        )
    return found


def _targets(layers: Mapping[str, _Layer], model: nn.Module) -> list[str] | str:
    """The layers' paths; as a regular expression if in a list they would also mean others that end like them."""
    paths = sorted(layers)
    ends = tuple(f".{path}" for path in paths)
    if any(name not in layers and name.endswith(ends) for name, _ in model.named_modules()):
        return "|".join(re.escape(path) for path in paths)
    return paths


def _usual(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _number(value: float) -> float:
    return int(value) if value == int(value) else value
