"""Tables that are made once for each device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

_P = ParamSpec("_P")


def constant(make: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Keeps what a function returns, for the same arguments.

    Under a fake tensor mode (the memory plan) or torch.compile it is made anew: what is made there is of no use later.
    """
    kept = functools.lru_cache(64)(make)

    @functools.wraps(make)
    def found(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
            return make(*args, **kwargs)
        with torch.inference_mode(False):  # else autograd could not use it afterwards
            return kept(*args, **kwargs)  # type: ignore[arg-type]

    return found
