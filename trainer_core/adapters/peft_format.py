"""Adapters as PEFT has them: the settings of its config classes, and tensors in the names of its layers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import AdapterError
from .deltas import Delta, Hadamard, Kronecker, changed_norms
from .operations import dense_weight


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


def to_peft(deltas: Mapping[str, Delta], model: nn.Module) -> PeftAdapter:
    """The deltas of one model's layers, by module path, as an adapter of PEFT's that does the same.

    Args:
        model: whose layers they are; DoRA needs its weights.

    Raises:
        AdapterError: for what PEFT has no adapter for, with the reason.
    """
    kinds = sorted({delta.kind for delta in deltas.values()})
    if len(kinds) > 1:
        raise AdapterError(f"the file mixes {' and '.join(kinds)}, and an adapter of PEFT is of one kind")
    (kind,) = kinds
    layers = {path: _layer(delta, model.get_submodule(path)) for path, delta in deltas.items()}
    ranks = {path: rank for path, (rank, _) in layers.items()}
    alphas = {path: _number(deltas[path].scale * rank) for path, rank in ranks.items()}
    rank, alpha = _usual(ranks), _usual(alphas)
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha" if kind in ("LoRA", "DoRA") else "alpha": alpha,
        "target_modules": _targets(layers.keys(), model),
        # without the anchor a pattern also means the layers whose paths end like it
        "rank_pattern": {f"^{path}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{path}": value for path, value in alphas.items() if value != alpha},
    }
    if kind == "DoRA":
        settings["use_dora"] = True
    if kind == "LoKr":
        settings["decompose_factor"] = _factor(deltas)
    tensors = {f"{path}.{key}": value for path, (_, own) in layers.items() for key, value in own.items()}
    return PeftAdapter(kind, settings, tensors)


def _layer(delta: Delta, module: nn.Module) -> tuple[int, dict[str, Tensor]]:
    """A layer's rank as PEFT counts it, and its tensors."""
    if isinstance(delta, Hadamard):
        return delta.rank, delta.named()
    if isinstance(delta, Kronecker):  # w2 is whole where the rank is at least half of its larger side
        half = max(delta.w2_shape[:2]) / 2
        if delta.w2 is None and (rank := delta.factors[1].shape[0]) < half:
            return rank, delta.named()
        return max(1, math.ceil(half)), {"lokr_w1": delta.w1, "lokr_w2": delta.whole_w2}
    parts = {"lora_A.weight": delta.down, "lora_B.weight": delta.up_weight}
    if delta.dora_scale is not None and delta.norms is not None:
        longer = changed_norms(dense_weight(module), delta.norms, delta.down, delta.up, delta.scale)
        magnitude = delta.dora_scale * (longer / delta.norms)  # the paper's m
        kernel = delta.up_weight.shape[2:]
        parts["lora_magnitude_vector"] = magnitude.reshape((1, -1, *kernel) if kernel else (-1,))
    return delta.rank, parts


def _factor(deltas: Mapping[str, Delta]) -> int:
    """The `decompose_factor` with which PEFT cuts all layers as these LoKrs are cut.

    Raises:
        AdapterError: if there is none.
    """
    from peft.tuners.lokr.layer import factorization

    cuts: dict[tuple[int, int], str] = {}
    for path, delta in deltas.items():
        assert isinstance(delta, Kronecker)
        for factor, rest in zip(delta.w1.shape, delta.w2_shape, strict=False):
            cuts.setdefault((factor * rest, factor), path)

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


def _targets(layers: Collection[str], model: nn.Module) -> list[str] | str:
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
