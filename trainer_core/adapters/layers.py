"""A frozen layer with a trained weight delta beside it, of each kind, and the values from which training starts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import AdapterError
from ..randomness import generator
from .deltas import Delta, Hadamard, Kronecker, LowRank, changed_norms, computing_in, row_norms
from .dropout import SeededDropout
from .fused import Siblings, low_rank
from .operations import Operation, dense_weight, device_of, with_gradient
from .traced import low_ranks
from .working import Working, computing_dtype

_ASKED = {"weight", "bias", "in_features", "out_features", "in_channels", "out_channels"}
_ASKED |= {"kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "transposed"}
"""What models ask of their layers beside calling them."""


class AdaptedLayer(nn.Module, ABC):
    """A layer that `operation_of` knows, with its delta: y = layer(x) + strength · ΔW x.

    The trained tensors are fp32 whatever the layer's precision; they compute in the layer's.
    """

    skips_product = False
    """Set while a block is recomputed whose output nobody looks at: a LoRA on a linear layer then gives a tensor with
    any values, with the graph that it has otherwise."""
    working: Working

    def __init__(
        self,
        layer: nn.Module,
        operation: Operation,
        name: str,
        rank: int,
        scale: float,
        config: AdapterConfig,
        seed: int,
    ) -> None:
        """Raises:
        AdapterError: if the kind needs the layer's weight, and it cannot be read.
        """
        super().__init__()
        self.base_layer = layer
        self.operation = operation
        self.scale = scale
        """alpha / rank"""
        self.strength = 1.0
        self.enabled = True
        self.dropout = SeededDropout(config.dropout, name)
        self._place = (seed, name)
        self.trained: dict[str, nn.Parameter] = {}
        """By the names that training state has for them."""
        for key, start in self.start(rank, config).items():
            self.trained[key] = nn.Parameter(start.to(device_of(layer)))
            self.register_parameter(key.replace(".", "_"), self.trained[key])

    @abstractmethod
    def start(self, rank: int, config: AdapterConfig) -> dict[str, Tensor]:
        """The trained tensors at the start, on the CPU: together they change nothing yet."""

    @abstractmethod
    def delta(self) -> Delta:
        """The delta as it is now, with its graph."""

    @abstractmethod
    def started_from(self, delta: Delta) -> dict[str, Tensor]:
        """The trained tensors that do what another delta of this layer does.

        Raises:
            AdapterError: if this kind of adapter, or its rank, cannot.
        """

    def forward(self, x: Tensor) -> Tensor:
        y = with_gradient(self.base_layer, self.operation, x, self.base_layer(x))
        if not self.enabled:
            return y
        bias = getattr(self.base_layer, "bias", None)
        delta = computing_in(computing_dtype(x), self.delta())
        return (y + delta.added(self.operation, self.dropout(x), y, bias, self.strength)).to(y.dtype)

    def __getattr__(self, name: str) -> Any:
        """The frozen layer's own of what models ask. Nothing else: ComfyUI knows its layers by further attributes."""
        return getattr(self.base_layer, name) if name in _ASKED else super().__getattr__(name)

    def _random(self, kind: str, *part: str) -> torch.Generator:
        seed, name = self._place
        return generator(seed, kind, name, *part)


class LoraLayer(AdaptedLayer):
    """LoRA: A starts uniform (Kaiming, as in the reference), B at zero."""

    siblings: Siblings | None = None
    """The layers that are given the same tensor, this one among them; None until it is known."""

    @property
    def is_fused(self) -> bool:
        """Whether it computes by functions of its own (`fused`)."""
        return not self.operation.kernel

    def forward(self, x: Tensor) -> Tensor:
        if not (self.enabled and self.is_fused):
            return super().forward(x)
        return self.outputs([self], x)[0] if torch.compiler.is_compiling() else low_rank(self, x)

    @staticmethod
    def outputs(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """Those of layers that read the same tensor (…, in), for a compiler; one after the other where they are not all
        linear layers with a LoRA."""
        loras = [layer for layer in layers if isinstance(layer, LoraLayer) and layer.enabled and layer.is_fused]
        return low_ranks(loras, x) if len(loras) == len(layers) else [layer(x) for layer in layers]

    def start(self, rank: int, config: AdapterConfig) -> dict[str, Tensor]:  # noqa: ARG002
        down = _kaiming((rank, *self.operation.weight_shape[1:]), self._random("lora_init"))
        return {"lora_A.weight": down, "lora_B.weight": torch.zeros(self.operation.outputs, rank)}

    def delta(self) -> LowRank:
        return LowRank(self.trained["lora_A.weight"], self.trained["lora_B.weight"], self.scale)

    def started_from(self, delta: Delta) -> dict[str, Tensor]:
        low_rank = _of_kind(delta, LowRank, "LoRA")
        if low_rank.dora_scale is not None:
            raise AdapterError("the file is a DoRA, which a LoRA cannot represent. Set adapter.type to dora")
        mine = self.trained["lora_A.weight"].detach().cpu()
        down, up = fitted(low_rank, mine.shape[0], self.scale, mine)
        return {"lora_A.weight": down, "lora_B.weight": up}


class DoraLayer(LoraLayer):
    """DoRA: W' = m · (W + ΔW) / ‖W + ΔW‖ row by row; m starts as ‖W‖. The norm has no gradient (paper, §4.3)."""

    is_fused = False
    _norms: Tensor
    """‖W‖ of each row (out,)"""

    def start(self, rank: int, config: AdapterConfig) -> dict[str, Tensor]:
        self.register_buffer("_norms", row_norms(dense_weight(self.base_layer)), persistent=False)
        return {**super().start(rank, config), "magnitude": self._norms.clone()}

    def delta(self) -> LowRank:
        delta = super().delta()
        longer = changed_norms(dense_weight(self.base_layer), self._norms, delta.down, delta.up, self.scale)
        return replace(delta, dora_scale=self.trained["magnitude"] * (self._norms / longer), norms=self._norms)

    def started_from(self, delta: Delta) -> dict[str, Tensor]:
        low_rank = _of_kind(delta, LowRank, "LoRA")
        lora = super().started_from(LowRank(low_rank.down, low_rank.up, low_rank.scale))
        down, up = (lora[name].to(self._norms) for name in ("lora_A.weight", "lora_B.weight"))
        magnitude = changed_norms(dense_weight(self.base_layer), self._norms, down, up, self.scale)
        if low_rank.dora_scale is not None:
            magnitude = magnitude * (low_rank.dora_scale.to(magnitude.device) / self._norms)
        return {**lora, "magnitude": magnitude}


class LokrLayer(AdaptedLayer):
    """LoKr: w1 starts uniform and w2, or its right factor, at zero, as in LyCORIS.

    w2 has two factors where `rank` is less than half of its larger side, and is whole otherwise.
    """

    def start(self, rank: int, config: AdapterConfig) -> dict[str, Tensor]:
        out, into, *kernel = self.operation.weight_shape
        (a, b), (c, d) = factors(out, config.factor), factors(into, config.factor)
        made = {"lokr_w1": _kaiming((a, c), self._random("lokr_init", "w1"))}
        if rank >= max(b, d) / 2:
            return {**made, "lokr_w2": torch.zeros(b, d, *kernel)}
        w2_a = _kaiming((b, rank), self._random("lokr_init", "w2_a"))
        return {**made, "lokr_w2_a": w2_a, "lokr_w2_b": torch.zeros(rank, d, *kernel)}

    def delta(self) -> Kronecker:
        trained = self.trained
        w2, w2_a, w2_b = (trained.get(f"lokr_{name}") for name in ("w2", "w2_a", "w2_b"))
        return Kronecker(trained["lokr_w1"], w2, w2_a, w2_b, self.scale)

    def started_from(self, delta: Delta) -> dict[str, Tensor]:
        given = _of_kind(delta, Kronecker, "LoKr")
        mine = self.trained
        found = {"lokr_w1": given.w1 * (given.scale / self.scale)}
        if "lokr_w2" in mine:
            found["lokr_w2"] = given.whole_w2
        elif given.w2 is None:
            found["lokr_w2_a"], found["lokr_w2_b"] = given.factors
        else:
            raise AdapterError("the file's second Kronecker factor is whole. Set a higher adapter.rank")
        for name, value in found.items():
            if value.shape != mine[name].shape:
                shapes = f"{tuple(value.shape)} in the file and {tuple(mine[name].shape)} here"
                raise AdapterError(f"{name} is {shapes}. Set adapter.rank and adapter.factor to the file's")
        return found


class LohaLayer(AdaptedLayer):
    """LoHa: as in LyCORIS, the factors start normal, but for one that is zero."""

    def start(self, rank: int, config: AdapterConfig) -> dict[str, Tensor]:  # noqa: ARG002
        out, *row = self.operation.weight_shape
        wide = math.prod(row)

        def normal(name: str, shape: tuple[int, int], std: float) -> Tensor:
            return torch.randn(shape, generator=self._random("loha_init", name)) * std

        return {
            "hada_w1_a": normal("w1_a", (out, rank), 0.1),
            "hada_w1_b": normal("w1_b", (rank, wide), 1.0),
            "hada_w2_a": torch.zeros(out, rank),
            "hada_w2_b": normal("w2_b", (rank, wide), 1.0),
        }

    def delta(self) -> Hadamard:
        w1_a, w1_b, w2_a, w2_b = self.trained.values()
        return Hadamard(w1_a, w1_b, w2_a, w2_b, self.scale)

    def started_from(self, delta: Delta) -> dict[str, Tensor]:
        given = _of_kind(delta, Hadamard, "LoHa")
        rank = self.trained["hada_w1_b"].shape[0]
        if given.rank != rank:
            raise AdapterError(f"the file's rank is {given.rank}, the job's is {rank}. Set adapter.rank to it")
        return {**given.named(), "hada_w1_a": given.w1_a * (given.scale / self.scale)}


KINDS: dict[str, type[AdaptedLayer]] = {"lora": LoraLayer, "dora": DoraLayer, "lokr": LokrLayer, "loha": LohaLayer}
"""By `adapter.type`."""


def factors(size: int, factor: int) -> tuple[int, int]:
    """Two factors of a size, the smaller first: for LoKr.

    -1 or 0: as even as can be. Else the smaller one is the largest divisor that is at most `factor`, and no more than
    the other.
    """
    most = math.isqrt(size) if factor < 1 else min(factor, math.isqrt(size))
    smaller = next(k for k in range(max(most, 1), 0, -1) if size % k == 0)
    return smaller, size // smaller


def fitted(delta: LowRank, rank: int, scale: float, fresh_down: Tensor) -> tuple[Tensor, Tensor]:
    """A delta as (A, B) of a rank and scale, to go on training from; what it does is unchanged.

    Columns of B that are zero (the other parts of a fused layer) are dropped; rows missing to the rank come from
    `fresh_down` (rank, in), with zero columns in B.

    Raises:
        AdapterError: if the delta needs more than `rank`.
    """
    kept = (delta.up != 0).any(0).nonzero().flatten()
    if len(kept) > rank:
        raise AdapterError(f"the file's rank is {len(kept)}, the job's is {rank}. Set rank to it")
    down, up = fresh_down.clone(), delta.up.new_zeros(delta.up.shape[0], rank)
    down[: len(kept)] = delta.down[kept]
    up[:, : len(kept)] = delta.up[:, kept] * (delta.scale / scale)
    return down, up


def _of_kind(delta: Delta, kind: Any, name: str) -> Any:
    if not isinstance(delta, kind):
        raise AdapterError(f"the file is a {delta.kind}, the job's adapter.type makes a {name}")
    return delta


def _kaiming(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """kaiming_uniform with a = √5, as nn.Linear and the references start: U(±1 / √inputs)."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=source)
