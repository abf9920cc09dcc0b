"""Blocks compiled one by one (torch.compile): all blocks of a class share their graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ..errors import first_line
from ..runs.events import Listener, Warning
from .device_guard import keep_device_guard
from .out_of_place import out_of_place
from .saved import unwatched

_GRAPHS = 64
"""Graphs of each class of blocks: for values and for gradients, first and other blocks, adapter on and off, sizes of
pictures. torch itself gives up after 8, and computes as if nothing were compiled."""
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""torch's fused attention."""


def compile_blocks(blocks: Iterable[nn.Module], emit: Listener, change_inputs: bool = False) -> None:
    """Compiles blocks; their results are the same to rounding. To be called before they are recomputed or streamed.

    Where compiling fails (no compiler, an operation that it does not know) the user is told, once, and the blocks run
    as they are.

    Args:
        change_inputs: they may change what they are given in place, and train inside `mutable_saved`.
    """
    keep_device_guard()
    state = _State(emit, change_inputs)
    for block in blocks:
        compiled = Compiled(block.forward, state)

        @functools.wraps(block.forward)
        def forward(*args: Any, _compiled: Compiled = compiled, **kwargs: Any) -> Any:
            return _compiled.run(args, kwargs)

        forward.compiled = compiled  # type: ignore[attr-defined]  # for who puts something around it
        block.forward = forward


class _State:
    """Of all blocks of a model: whether compiling works, and how it is done."""

    def __init__(self, emit: Listener, change_inputs: bool) -> None:
        self.failed, self._emit, self._change_inputs = False, emit, change_inputs

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self._change_inputs:
            return torch.compile(function)
        return torch.compile(function, backend=out_of_place, fullgraph=True)  # nobody sees what changes between graphs

    def around(self) -> AbstractContextManager[None]:
        """What is around compiled code."""
        return unwatched() if self._change_inputs else nullcontext()

    def give_up(self, reason: str) -> None:
        self.failed = True
        self._emit(Warning(f"memory.compile: blocks cannot be compiled here and run as usual ({reason})"))


class Compiled:
    """A block's forward."""

    def __init__(self, plain: Callable[..., Any], state: _State) -> None:
        self._plain, self._state = plain, state
        self._compiled = state.compiled(plain)
        self._checkpointed = {keep: state.compiled(_checkpointed(plain, keep)) for keep in (False, True)}

    @property
    def works(self) -> bool:
        """Whether it can be compiled, as far as is known."""
        with self._state.around():
            return not self._state.failed and not is_in_torch_dispatch_mode()

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Computes it, compiled where that works."""
        return self._tried(self._compiled, self._plain, args, kwargs)

    def run_checkpointed(
        self, keep_attention: bool, otherwise: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The same, with nothing but the inputs kept for the backward pass; there the rest is computed again.

        The compiler sees both, so that only what the gradient needs is computed twice.

        Args:
            keep_attention: what attention gives is kept, too.
            otherwise: computes it where compiling fails.
        """
        return self._tried(self._checkpointed[keep_attention], otherwise, args, kwargs)

    def _tried(
        self, compiled: Callable[..., Any], otherwise: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        from torch._dynamo import config
        from torch._dynamo.exc import TorchDynamoException

        state = self._state
        with state.around():
            if not state.failed and is_in_torch_dispatch_mode():
                state.give_up("what this model changes in place is watched, and torch compiles nothing that is")
            if not state.failed:
                limit = {"recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit": _GRAPHS}
                try:
                    with config.patch(limit):  # of a thread, and the backward pass has its own
                        return compiled(*args, **kwargs)
                except TorchDynamoException as error:
                    state.give_up(first_line(getattr(error, "inner_exception", error)))
        return otherwise(*args, **kwargs)


def _checkpointed(plain: Callable[..., Any], keep_attention: bool) -> Callable[..., Any]:
    options: dict[str, Any] = {"use_reentrant": False}
    if keep_attention:
        kept = [getattr(torch.ops.aten, name).default for name in _ATTENTION if hasattr(torch.ops.aten, name)]
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, kept)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(plain, *args, **options, **kwargs)

    return forward
