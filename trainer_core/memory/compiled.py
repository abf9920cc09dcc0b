"""Blocks compiled one by one (torch.compile): all blocks of a class share their graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..errors import first_line
from ..runs.events import Listener, Warning

_GRAPHS = 64
"""Graphs of each class of blocks: for values and for gradients, first and other blocks, adapter on and off, sizes of
pictures. torch itself gives up after 8, and computes as if nothing were compiled."""


def compile_blocks(blocks: Iterable[nn.Module], emit: Listener) -> None:
    """Compiles blocks; their results are the same to rounding. To be called before they are recomputed or streamed.

    Where compiling fails (no compiler, an operation that it does not know, a model of ComfyUI's inside `mutable_saved`)
    the user is told, once, and the blocks run as they are.
    """
    state = _State(emit)
    for block in blocks:
        block.forward = _compiled(block.forward, state)


class _State:
    """Of all blocks of a model: whether compiling works."""

    def __init__(self, emit: Listener) -> None:
        self.failed, self._emit = False, emit

    def give_up(self, reason: str) -> None:
        self.failed = True
        self._emit(Warning(f"memory.compile: blocks cannot be compiled here and run as usual ({reason})"))


def _compiled(plain: Callable[..., Any], state: _State) -> Callable[..., Any]:
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    compiled = torch.compile(plain)
    limit = {"recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit": _GRAPHS}

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not state.failed and is_in_torch_dispatch_mode():
            state.give_up("what this model changes in place is watched, and torch compiles nothing that is")
        if not state.failed:
            try:
                with config.patch(limit):  # of a thread, and the backward pass has its own
                    return compiled(*args, **kwargs)
            except TorchDynamoException as error:
                state.give_up(first_line(getattr(error, "inner_exception", error)))
        return plain(*args, **kwargs)

    forward.is_compiled = True  # type: ignore[attr-defined]  # told to who puts something around it
    return forward
