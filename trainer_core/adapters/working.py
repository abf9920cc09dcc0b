"""Trained tensors in the precision of computing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def computing_dtype(x: Tensor) -> torch.dtype:
    """The precision in which a layer computes for an input x."""
    kind = x.device.type
    # the meta device has none, and dynamo does not know how to ask for it
    if kind != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class Working:
    """Copies of a model's trained tensors in the precision of computing, cast together once a pass."""

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [*parameters]
        self._copies: dict[torch.dtype, dict[int, tuple[Tensor, int]]] = {}
        """By precision and a parameter's id: the copy, and the parameter's version when it was made."""
        self.readings: dict[Any, Any] = {}
        """What layers share that read the same tensor (`fused.Reading`), as long as some of them have not."""
        model.register_forward_pre_hook(self._new_pass)

    def of(self, parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
        """A trained tensor in a precision, without a graph."""
        if parameter.dtype == dtype:
            return parameter
        if dtype not in self._copies:
            self._copies[dtype] = self._cast(dtype)
        copy, version = self._copies[dtype].get(id(parameter), (parameter, -1))
        current = parameter._version == version and copy.device == parameter.device  # noqa: SLF001
        return copy if current else parameter.detach().to(dtype)

    def _new_pass(self, *_: Any) -> None:
        self.readings.clear()
        self._copies.clear()  # an optimizer's own kernels change parameters without a new version

    @torch.no_grad()
    def _cast(self, dtype: torch.dtype) -> dict[int, tuple[Tensor, int]]:
        sizes = [one.numel() for one in self._parameters]
        flat = torch.empty(sum(sizes), dtype=dtype, device=self._parameters[0].device)
        copies = [part.view_as(one) for part, one in zip(flat.split(sizes), self._parameters, strict=True)]
        torch._foreach_copy_(copies, self._parameters)  # type: ignore[arg-type]
        return {id(one): (copy, one._version) for one, copy in zip(self._parameters, copies, strict=True)}  # noqa: SLF001
