"""Blocks that are computed again in the backward pass, whatever they do to their inputs.

ComfyUI's blocks change tensors in place. torch.utils.checkpoint then starts again from changed inputs, without an
error; torch.autograd.graph.allow_mutation_on_saved_tensors misses changes through a view that starts elsewhere, and
takes a new tensor for an old one that had its address. So this is done here.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from .structure import Rebuild


class _Kept:
    """A tensor with the values that it had; it is the tensor itself until somebody is about to change it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Equal for those that show the same memory in the same way."""
        if type(self.tensor) is not Tensor:
            return (id(self.tensor),)
        return self.tensor.storage_offset(), self.tensor.size(), self.tensor.stride(), self.tensor.dtype


class _CopyBeforeChange(TorchDispatchMode):
    """Clones what is kept before an operation writes into its memory."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: defaultdict[int, WeakSet[_Kept]] = defaultdict(WeakSet)
        """By their storages. Those that have a clone are no longer in it."""

    def keep(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        for storage in _storages(tensor):
            self._kept[storage].add(kept)
        return kept

    def value(self, kept: _Kept) -> Tensor:
        if _changes is not self:
            raise RuntimeError("the backward pass must be inside the mutable_saved() of its forward pass")
        if kept.tensor.is_cuda:  # a clone was made on the stream of who changed it
            kept.tensor.record_stream(torch.cuda.current_stream(kept.tensor.device))
        return kept.tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        for number, name in _written(func):
            value = args[number] if number < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor):
                    self._clone(tensor)
        return func(*args, **kwargs)

    def _clone(self, changed: Tensor) -> None:
        for storage in _storages(changed):
            clones: dict[tuple[Any, ...], Tensor] = {}
            for kept in self._kept.pop(storage, ()):
                geometry = kept.geometry
                if geometry not in clones:
                    clones[geometry] = kept.tensor.clone()
                kept.tensor = clones[geometry]


_changes: _CopyBeforeChange | None = None
"""Of the process, not of a thread: on a GPU another thread runs the backward pass."""


@contextmanager
def mutable_saved() -> Iterator[None]:
    """Around a forward pass and its backward pass: what autograd saves may be changed in place meanwhile.

    Inside another one it does nothing.
    """
    global _changes
    if _changes is not None:
        yield
        return
    _changes = changes = _CopyBeforeChange()
    try:
        with saved_tensors_hooks(changes.keep, changes.value), changes:
            yield
    finally:
        _changes = None


def recompute_blocks(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Makes blocks of a model keep nothing but their inputs for the backward pass, and compute the rest again.

    Gradients are the same, to the order of sums. The model then trains inside `mutable_saved` only. Without gradients
    the blocks run as before.
    """
    for block in blocks:
        block.forward = _recomputed(block, block.forward)  # type: ignore[method-assign]


def _recomputed(block: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        weights = [weight for weight in block.parameters() if weight.requires_grad]
        call = _Call(run, (args, kwargs), weights)
        if not weights and not any(one.requires_grad for one in call.inputs):
            return run(*args, **kwargs)
        return call()

    return forward


class _Call:
    """One call of a block."""

    def __init__(self, run: Callable[..., Any], arguments: tuple[Any, Any], weights: Sequence[Tensor]) -> None:
        self.run, self.arguments, self.weights = run, arguments, weights
        self.inputs: list[Tensor] = []
        """The tensors in the arguments, each once."""
        self.outputs: Any = None
        """What the block gave, with a number in the place of each tensor: of a result, or ~ that of an input."""
        self.changed: list[int] = []
        """Numbers of the inputs that the block changes in place."""
        self.snapshot = _replaced(arguments, self._number)
        """The arguments as they are before the block runs, with a number in the place of each tensor."""
        self._contexts = [
            functools.partial(torch.autocast, kind, dtype, enabled, cache_enabled=False)
            for kind in {"cpu", *(one.device.type for one in self.inputs)}
            if torch.amp.is_autocast_available(kind)
            for dtype, enabled in [(torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))]
        ]
        """Autocast as it is now, without its cache: a weight that was cast without a graph has no gradient."""

    def __call__(self) -> Any:
        """Runs the block with its graph, which is one node.

        A result that is one of the inputs is that tensor itself, and inputs that the block changes are changed.
        """
        results = _Recompute.apply(self, *self.inputs, *self.weights)
        for number, result in zip(self.changed, results, strict=False):
            self.inputs[number].copy_(result)
        found, inputs = results[len(self.changed) :], self.inputs
        given = _filled(self.outputs, lambda number: inputs[~number] if number < 0 else found[number])
        del self.inputs, self.arguments, self.outputs  # the graph holds this call, and they hold the graph
        return given

    def first(self) -> tuple[Tensor, ...]:
        """The block on its real arguments, without a graph: the new values of changed inputs, then the results."""
        versions = [*map(_version, self.inputs)]
        with self.autocast():
            given = self.run(*self.arguments[0], **self.arguments[1])
        self.changed = [number for number, one in enumerate(self.inputs) if _version(one) != versions[number]]
        places = {id(one): ~number for number, one in enumerate(self.inputs)}
        results: list[Tensor] = []

        def place(tensor: Tensor) -> _Place:
            if id(tensor) not in places:
                places[id(tensor)] = len(results)
                results.append(tensor)
            return _Place(places[id(tensor)])

        self.outputs = _replaced(given, place)
        memory = {storage for one in self.inputs for storage in _storages(one)}
        changed = [self.inputs[number].detach().clone() for number in self.changed]
        # a view as a result could not be changed in place by who gets it
        return *changed, *(one.clone() if one._is_view() or memory & {*_storages(one)} else one for one in results)

    def again(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same with its graph to `inputs`, which have the values that the arguments had."""
        free = [one.clone() if number in self.changed else one for number, one in enumerate(inputs)]
        args, kwargs = _filled(self.snapshot, lambda number: free[number])
        with self.autocast():
            given = self.run(*args, **kwargs)
        known = {id(one) for one in free}
        results: dict[int, Tensor] = {}
        _replaced(given, lambda one: one if id(one) in known else results.setdefault(id(one), one))
        return [*(free[number] for number in self.changed), *results.values()]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context())
            yield

    def _number(self, tensor: Tensor) -> _Place:
        self.inputs.append(tensor)
        return _Place(len(self.inputs) - 1)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        if _changes is None:
            raise RuntimeError("recomputed blocks train inside mutable_saved() only")
        ctx.call, ctx.keeper = call, _changes
        ctx.kept = [_changes.keep(one.detach()) for one in call.inputs]
        return call.first()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        call: _Call = ctx.call
        kept, ctx.kept = ctx.kept, None
        needed = ctx.needs_input_grad[1 : 1 + len(kept)]
        inputs = [ctx.keeper.value(one).detach().requires_grad_(need) for one, need in zip(kept, needed, strict=True)]
        del kept
        with torch.enable_grad(), mutable_saved():
            results = call.again(inputs)
            pairs = [
                (result, gradient)
                for result, gradient in zip(results, gradients, strict=True)
                if gradient is not None and result.requires_grad
            ]
            wanted = [*(one for one in inputs if one.requires_grad), *call.weights]
            _no_other_graph(pairs, wanted)
            found = iter(
                torch.autograd.grad([one for one, _ in pairs], wanted, [one for _, one in pairs], allow_unused=True)
                if pairs
                else [None] * len(wanted)
            )
        return None, *(next(found) if need else None for need in needed), *found


def _no_other_graph(pairs: Sequence[tuple[Tensor, Tensor]], known: Sequence[Tensor]) -> None:
    """Raises:
    RuntimeError: if results have a graph to weights that neither the block nor its arguments hold: their gradient
        would be lost.
    """
    expected = {id(one) for one in known}
    waiting = [one.grad_fn for one, _ in pairs]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in expected:
            raise RuntimeError(
                "a block gets trained values in a form that cannot be opened, so it cannot be recomputed: "
                f"{tuple(variable.shape)}. Switch off train.gradient_checkpointing, or leave that layer out"
            )
        waiting.extend(following for following, _ in node.next_functions)


class _Place:
    """Stands for a tensor in a structure."""

    def __init__(self, number: int) -> None:
        self.number = number


def _replaced(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    return Rebuild(lambda part: replace(part) if isinstance(part, Tensor) else NotImplemented, (Tensor,))(value)


def _filled(value: Any, tensor: Callable[[int], Tensor]) -> Any:
    return Rebuild(lambda part: tensor(part.number) if isinstance(part, _Place) else NotImplemented, (_Place,))(value)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # an inference tensor cannot be changed here


def _storages(tensor: Tensor) -> list[int]:
    """The memory of a tensor: several pieces if it is quantized."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts, _ = tensor.__tensor_flatten__()
        return [storage for name in parts for storage in _storages(getattr(tensor, name))]
    return [tensor.untyped_storage()._cdata]


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """The arguments, by position and name, that an operation writes into."""
    arguments = enumerate(func._schema.arguments)
    return tuple((number, one.name) for number, one in arguments if one.alias_info and one.alias_info.is_write)
