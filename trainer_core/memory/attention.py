"""What attention gives in a recomputed block is kept and not computed again: it costs most there, and is small.

torch's fused attention is one operation, whose results are what its gradient needs. Other attention is computed again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from .saved import Kept, Unchanged, keep

Attend = Callable[..., Tensor]


class KeptAttention:
    """The results of fused attention in one computation of a block, for the second one."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, list[Any]]] = []
        """The operations, the first one first, with their results; tensors in the way of `saved.keep`."""

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Around the first computation, which has no graph."""

        def attending(attend: Attend, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # which kernel it is, and whether it gives what its gradient needs, depends on whether there is to be one
            given = [one.detach().requires_grad_() for one in (query, key, value)]
            with torch.enable_grad(), _Fused(self._keep):
                return attend(*given, *args, **kwargs).detach()

        with _in_place_of_torchs(attending):
            yield

    @contextmanager
    def given(self) -> Iterator[None]:
        """Around the second computation; what was kept is handed over."""
        self._kept.reverse()

        def attending(attend: Attend, *args: Any, **kwargs: Any) -> Tensor:
            with _Fused(self._give):
                return attend(*args, **kwargs)

        with _in_place_of_torchs(attending):
            yield

    def _keep(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        results = func(*args, **kwargs)
        self._kept.append((func, [keep(one.detach()) if isinstance(one, Tensor) else one for one in results]))
        return results

    def _give(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._kept or self._kept[-1][0] is not func:
            return func(*args, **kwargs)
        _, results = self._kept.pop()
        return tuple(one.value() if isinstance(one, Kept | Unchanged) else one for one in results)


@contextmanager
def _in_place_of_torchs(attending: Callable[..., Tensor]) -> Iterator[None]:
    """Has models call a function in place of torch's, which is its first argument."""
    attend = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = functools.partial(attending, attend)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attend


class _Fused(TorchDispatchMode):
    """Has fused attention done by a function."""

    def __init__(self, by: Callable[..., Any]) -> None:
        super().__init__()
        self._by = by

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        fused = name.startswith("_scaled_dot_product_") and not name.endswith("_backward")
        return self._by(func, args, kwargs) if fused else func(*args, **kwargs)
