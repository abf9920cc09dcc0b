"""Counts the memory of tensors while code runs, operation by operation: on real tensors as on fake ones.

It sees what hooks on saved tensors do not, such as what an autograd function keeps on its context. It does not see
what an operation takes and gives back within itself.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

ACTIVATIONS = "activations"
"""The kind of all storages that nobody has named: what a pass keeps and what it needs in between."""
_ATTENTION = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable")
"""Of which torch's registry of FLOP formulas knows nothing: counted as the others are."""


class Tracker(TorchDispatchMode):
    """Inside `with`, bytes of all storages that are made or named, by kind, now and at their peak; and FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.current: Counter[str] = Counter()
        """Bytes by kind."""
        self.at_peak: Counter[str] = Counter()
        """The same when their sum was largest."""
        self.flops = 0
        """Of matrix products, convolutions and attention, as torch's FlopCounterMode counts them."""
        self._kinds: dict[int, tuple[str, int]] = {}
        self._total = self._peak = 0

    @property
    def peak(self) -> int:
        """Bytes, of all kinds."""
        return self._peak

    def name(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Counts the storages of tensors, known or not, as of a kind from now on."""
        for tensor in tensors:
            for part in plain(tensor):
                self._add(part, kind)
                key = part.untyped_storage()._cdata  # noqa: SLF001 # as in `_add`
                known, count = self._kinds[key]
                self._kinds[key] = kind, count
                self.current[known] -= count
                self.current[kind] += count

    def start_over(self) -> None:
        """The peak, and the FLOPs, are those from now on."""
        self._peak, self.at_peak, self.flops = self._total, +self.current, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.prim.device.default:
            return result
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                for part in plain(value):
                    self._add(part, ACTIVATIONS)
        packet = function.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        elif packet.__name__.removesuffix("_backward") in _ATTENTION:
            self.flops += _attention(packet.__name__.endswith("_backward"), *args)
        return result

    def _add(self, tensor: Tensor, kind: str) -> None:
        if type(tensor) is Tensor and tensor.is_meta:  # it takes nothing, as models do before they are imitated
            return
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 # what makes two storages the same
        if key in self._kinds:
            return
        count = storage.nbytes()
        self._kinds[key] = kind, count
        weakref.finalize(storage, self._gone, key)
        self.current[kind] += count
        self._total += count
        if self._total > self._peak:
            self._peak, self.at_peak = self._total, +self.current

    def _gone(self, key: int) -> None:
        kind, count = self._kinds.pop(key)
        self.current[kind] -= count
        self._total -= count


def plain(tensor: Tensor) -> Iterable[Tensor]:
    """The tensors that hold the memory of one: itself, or the parts of a quantized one."""
    if type(tensor) is Tensor or not hasattr(tensor, "__tensor_flatten__"):
        return (tensor,)
    names, _ = tensor.__tensor_flatten__()
    return (part for name in names for part in plain(getattr(tensor, name)))


def _attention(backward: bool, *args: Any) -> int:
    """FLOPs of attention: two products forward, five backward, where two of them are those of forward again."""
    query, key, value = args[1:4] if backward else args[:3]
    rows = math.prod(query.shape[:-1])
    return (
        2 * rows * key.shape[-2] * (query.shape[-1] * (3 if backward else 1) + value.shape[-1] * (2 if backward else 1))
    )
