"""Which layers' products nobody looks at when a block is computed again for its gradient: those that are only added up
and handed on, so that neither autograd nor the block itself ever reads their values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any
from uuid import UUID

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .saved import keep, memory, written_of
from .structure import attributes

_PASSES_ON = {
    "add", "add_", "sub", "sub_", "rsub", "neg", "neg_", "mul", "mul_", "div", "div_", "addcmul", "addcmul_",
    "view", "_unsafe_view", "_reshape_alias", "alias", "detach", "as_strided", "t", "transpose", "permute", "expand",
    "squeeze", "unsqueeze", "unfold", "slice", "select", "split", "split_with_sizes", "unbind",
    "clone", "_to_copy", "copy_", "cat", "stack", "prim::device",
}  # fmt: skip
"""Operations that any values go through: none is read to decide anything, whether or not it is a number."""
_TELLS = {"tolist", "numpy", "__array__", "__dlpack__", "data_ptr"}
"""Methods of tensors that give away values, or their address, and are no operations."""
_DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Liveness:
    """Looks on while a block is computed for its gradient, and tells whose outputs were not read."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._unread = list(layers)
        self._nodes: defaultdict[Any, list[nn.Module]] = defaultdict(list)
        """Layers by the node of the graph that made their output: one, or several that share it."""
        self._in: dict[int, tuple[set[nn.Module], Tensor]] = {}
        """Which layers' outputs are in a piece of memory, and what keeps it from being used for something else."""
        self._made: set[int] = set()
        """Memory that was allocated meanwhile; what is written elsewhere may be read at any time."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the computation, with its graph. What autograd saves may be changed as in `saved.keep`."""
        with ExitStack() as stack:
            for layer in self._unread:
                stack.callback(layer.register_forward_hook(self._computed).remove)
            stack.enter_context(saved_tensors_hooks(self._saved, lambda kept: kept.value()))
            stack.enter_context(_Operations(self))
            stack.enter_context(_Methods(self))
            yield

    def unread(self, results: Iterable[Tensor]) -> list[nn.Module]:
        """The layers whose outputs are not needed for the gradients of `results`, nor for anything else."""
        for node in graph(results):
            if isinstance(node, torch.autograd.function.BackwardCFunction):  # it keeps what it likes, unseen
                self._read(layer for one in _below(_following(node)) for layer in self._nodes.get(one, ()))
        return self._unread

    def _read(self, layers: Iterable[nn.Module]) -> None:
        """Outputs of these layers are needed."""
        if found := set(layers):
            self._unread = [layer for layer in self._unread if layer not in found]
            self._in = {piece: entry for piece, entry in self._in.items() if entry[0] - found}

    def _whose(self, *tensors: Tensor) -> set[nn.Module]:
        """The layers whose outputs are in what tensors show, if they have not been read."""
        found = [self._in[piece][0] for one in tensors for piece in memory(one) if piece in self._in]
        return set().union(*found) & {*self._unread}

    def _mark(self, tensor: Tensor, layers: set[nn.Module]) -> None:
        for piece in memory(tensor):
            known, _ = self._in.get(piece, (set[nn.Module](), tensor))
            self._in[piece] = known | layers, tensor.detach()

    def _computed(self, layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            self._nodes[output.grad_fn].append(layer)
            self._mark(output, {layer})
        else:
            self._read([layer])

    def _saved(self, tensor: Tensor) -> Any:
        self._read(self._whose(tensor))
        return keep(tensor.detach())  # its graph would hold itself, if the pass fails

    def tells(self, tensor: Tensor, address_only: bool) -> None:
        """The program learns of a tensor's values, so that its course may depend on them; or of where they are."""
        self._read(self._whose(tensor) if address_only else self._unread)

    def operates(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Does an operation."""
        given = [*_tensors(args), *_tensors(kwargs.values())]
        pieces = {piece for one in given for piece in memory(one)}
        changed = {piece for one in _tensors(written_of(func, args, kwargs)) for piece in memory(one)}
        layers = self._whose(*given)
        if not _DEPENDS_ON_VALUES.isdisjoint(func.tags):
            self._read(self._unread)
        elif func.name().partition(".")[0].removeprefix("aten::") not in _PASSES_ON or not changed <= self._made:
            self._read(layers)
        result = func(*args, **kwargs)
        results = [*_tensors(result if isinstance(result, tuple | list) else [result])]
        if len({one.device for one in (*given, *results)}) > 1:
            self._read(layers)
        for one in results:
            self._made.update({*memory(one)} - pieces)
            if layers:
                self._mark(one, layers)
        return result


class _Operations(TorchDispatchMode):
    def __init__(self, watch: Liveness) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._watch.operates(func, args, kwargs or {})


class _Methods(TorchFunctionMode):
    def __init__(self, watch: Liveness) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in _TELLS:
            self._watch.tells(args[0], address_only=name == "data_ptr")
        return func(*args, **(kwargs or {}))


def graph(results: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graph that tensors have, each once."""
    yield from _below([one.grad_fn for one in results])


def _below(nodes: Iterable[Any]) -> Iterator[Any]:
    waiting, seen = [*nodes], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(_following(node))


def _following(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions]


def fixed(value: Any) -> Hashable:
    """Equal for arguments on which the course of a block depends in the same way.

    Raises:
        ValueError: if that cannot be told: functions, and objects that are not known.
    """
    if isinstance(value, dict):
        return tuple((fixed(key), fixed(one)) for key, one in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(fixed, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(fixed, value))
    if value is None or isinstance(value, bool | int | float | str | Enum | UUID | torch.dtype | torch.device):
        return type(value), value
    if callable(value) or not (held := attributes(value)):
        raise ValueError(type(value).__name__)
    return type(value), fixed(held)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
