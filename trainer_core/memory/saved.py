"""What is kept for the backward pass may be changed in place meanwhile: it is copied just before that.

As torch.autograd.graph.allow_mutation_on_saved_tensors, which misses a change through a view that starts elsewhere in
the same memory, and takes a new tensor for an old one that had its address: gradients are then wrong, without an error.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode, _push_mode


class Kept:
    """A tensor with the values that it had when it was kept: itself, until somebody is about to change it."""

    def __init__(self, tensor: Tensor, changes: _CopyBeforeChange) -> None:
        self.tensor, self._changes, self._version = tensor, changes, version(tensor)

    def value(self) -> Tensor:
        """Raises:
        RuntimeError: outside the `mutable_saved` in which it was kept.
        """
        if self._changes is not _active:
            raise RuntimeError("the backward pass must be inside the mutable_saved() of its forward pass")
        if version(self.tensor) != self._version:
            raise RuntimeError("what is kept for the backward pass was changed in place, and nobody saw it")
        if self.tensor.is_cuda:  # a copy was made on the stream of who changed it
            self.tensor.record_stream(torch.cuda.current_stream(self.tensor.device))
        return self.tensor

    def before_change(self, clones: dict[tuple[Any, ...], Tensor]) -> None:
        """Becomes a clone, the same one as others of the same values."""
        shown = _shown(self.tensor)
        if shown not in clones:
            clones[shown] = self.tensor.clone()
        self.tensor = clones[shown]
        self._version = version(self.tensor)


class _CopyBeforeChange(TorchDispatchMode):
    """Clones what is kept before an operation writes into its memory."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: defaultdict[int, WeakSet[Any]] = defaultdict(WeakSet)
        """By their memory, which is theirs as long as they are here: those that have a clone are not."""

    def keep(self, tensor: Tensor) -> Kept:
        kept = Kept(tensor, self)
        self.watch(tensor, kept)
        return kept

    def watch(self, tensor: Tensor, who: Any) -> None:
        """Calls `who.before_change`, once, before the tensor's memory is changed."""
        for piece in memory(tensor):
            self._kept[piece].add(who)

    def forget(self) -> None:
        """Lets go of what was kept. An operation's own result holds the graph that keeps it, unseen by Python: that of
        a pass that failed would stay for good."""
        for waiting in self._kept.values():
            for one in waiting:
                if isinstance(one, Kept):
                    del one.tensor
        self._kept.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _written(func):  # all else is tens of thousands of operations in a step
            for value in written_of(func, args, kwargs or {}):
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(tensor, Tensor):
                        self._changes(tensor)
        return func(*args, **kwargs) if kwargs else func(*args)

    def _changes(self, tensor: Tensor) -> None:
        for piece in memory(tensor):
            clones: dict[tuple[Any, ...], Tensor] = {}
            for who in self._kept.pop(piece, ()):
                who.before_change(clones)


_active: _CopyBeforeChange | None = None
"""Of the process, not of a thread: on a GPU another thread runs the backward pass."""


@contextmanager
def mutable_saved() -> Iterator[None]:
    """Around a forward pass and its backward pass: what autograd saves may be changed in place meanwhile.

    Inside another one it does nothing.
    """
    global _active
    if _active is not None:
        yield
        return
    _active = changes = _CopyBeforeChange()
    try:
        with saved_tensors_hooks(changes.keep, Kept.value), changes:
            yield
    finally:
        _active = None
        changes.forget()


@contextmanager
def unwatched() -> Iterator[None]:
    """Inside `mutable_saved`: without its dispatch mode, in which torch compiles nothing."""
    if _active is None or _get_current_dispatch_mode() is not _active:
        yield
        return
    _active.__exit__(None, None, None)
    try:
        yield
    finally:
        _active.__enter__()


@contextmanager
def watched() -> Iterator[None]:
    """Inside `unwatched`: with its dispatch mode."""
    if _active is None or _get_current_dispatch_mode() is not None:
        yield
        return
    with _active:
        yield


def leave_unwatched(gradient: Any) -> None:
    """Has a node of autograd's graph compute without the dispatch mode, which its code may not know."""
    left: list[Any] = []

    def begin(_outputs: Any) -> None:
        if _active is not None and _get_current_dispatch_mode() is _active:
            left.append(_pop_mode())  # where an error comes before the end, autograd itself puts it back

    def end(_inputs: Any, _outputs: Any) -> None:
        if left:
            _push_mode(left.pop())

    gradient.register_prehook(begin)
    gradient.register_hook(end)


class Unchanged:
    """A tensor that nobody is to change before its value is needed."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._version = tensor, version(tensor)

    def value(self) -> Tensor:
        """Raises:
        RuntimeError: if it was changed in place.
        """
        if version(self.tensor) != self._version:
            raise RuntimeError("what a recomputed block was given was changed in place, outside mutable_saved()")
        return self.tensor


def keep(tensor: Tensor) -> Kept | Unchanged:
    """Keeps what autograd itself does not save; it may be changed in place inside `mutable_saved` only."""
    return Unchanged(tensor) if _active is None else _active.keep(tensor)


def on_change(tensor: Tensor, who: Any) -> None:
    """Inside `mutable_saved`, calls `who.before_change`, once, before the tensor's memory is changed in place."""
    if _active is not None:
        _active.watch(tensor, who)


def version(tensor: Tensor) -> int:
    """How often a tensor's memory was changed in place."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 # an inference tensor is not changed here


def memory(tensor: Tensor) -> list[int]:
    """The pieces of memory that a tensor shows, whatever part of them: several if it is quantized."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts, _ = tensor.__tensor_flatten__()
        return [piece for name in parts for piece in memory(getattr(tensor, name))]
    return [tensor.untyped_storage()._cdata]  # noqa: SLF001


def _shown(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that show the same piece of memory in the same way."""
    if type(tensor) is not Tensor:
        return (id(tensor),)
    return tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype


def written_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes into."""
    return [args[number] if number < len(args) else kwargs.get(name) for number, name in _written(func)]


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """The arguments, by position and name, that an operation writes into."""
    arguments = enumerate(func._schema.arguments)  # noqa: SLF001
    return tuple((number, one.name) for number, one in arguments if one.alias_info and one.alias_info.is_write)
