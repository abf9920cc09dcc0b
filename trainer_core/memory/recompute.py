"""Blocks that are computed again in the backward pass, whatever they do to their inputs.

ComfyUI's blocks change tensors in place: torch.utils.checkpoint would start again from the changed ones, silently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .attention import KeptAttention
from .bounded import bounded
from .liveness import graph
from .offload import Copies, Inputs, Offload
from .saved import keep, memory, version
from .structure import Rebuild
from .unread import Unread, skipping

if TYPE_CHECKING:
    from .compiled import Compiled


def recompute_blocks(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    *,
    every: int = 1,
    keep_attention: bool = False,
    copies: Copies | None = None,
) -> None:
    """Makes blocks of a model keep nothing but their inputs for the backward pass, and compute the rest again.

    Gradients are the same, bit for bit, whichever are. Where blocks change what they are given, or others do, the
    model trains inside `mutable_saved` only; outside of it this is a RuntimeError. Where nothing needs a gradient the
    blocks run as before.

    Args:
        every: only each n-th block is computed again; 0: none.
        keep_attention: what attention gives is kept, too, and not computed again.
        copies: has the inputs wait in host memory.

    Raises:
        ValueError: if one is of another model, such as the one that this one shadows; nothing is changed then.
    """
    blocks, own = list(blocks), {*model.modules()}
    if not own.issuperset(blocks):
        raise ValueError("blocks of another model")
    offload = None if copies is None else Offload(copies)
    for number, block in enumerate(blocks):
        run = block.forward
        recomputed = every and number % every == 0
        block.forward = _recomputed(block, run, keep_attention, offload) if recomputed else bounded(run)
        vars(block)["computes"] = run


def keep_blocks(blocks: Iterable[nn.Module]) -> None:
    """Undoes `recompute_blocks`, between two passes."""
    for block in blocks:
        block.forward = vars(block).pop("computes", block.forward)


def _recomputed(
    block: nn.Module, run: Callable[..., Any], keep_attention: bool, offload: Offload | None
) -> Callable[..., Any]:
    compiled: Compiled | None = getattr(run, "compiled", None)
    unread, nothing = Unread(skipping(block)), Unread(())

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        weights = [weight for weight in block.parameters() if weight.requires_grad]
        opaque = compiled is not None and compiled.works  # nobody can look into it, nor change what it calls
        call = _Call(run, args, kwargs, weights, nothing if opaque else unread)
        if weights or any(one.requires_grad for one in call.inputs):
            call.around = vars(block).get("around_backward", nullcontext)
            call.attention = KeptAttention() if keep_attention and not opaque else None
            call.offload = offload
            return call()
        return run(*args, **kwargs)

    @functools.wraps(run)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        # what is around a compiled gradient, and where its inputs wait, is not up to us
        if compiled is not None and compiled.works and offload is None and "around_backward" not in vars(block):
            return compiled.run_checkpointed(keep_attention, recomputed, args, kwargs)
        return recomputed(*args, **kwargs)

    return forward


class _Call:
    """One call of a block."""

    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is around the second computation and its gradient."""
    attention: KeptAttention | None = None
    offload: Offload | None = None

    def __init__(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weights: Sequence[Tensor],
        unread: Unread,
    ) -> None:
        self._run, self._arguments, self.weights, self._unread = run, (args, kwargs), weights, unread
        self.inputs: list[Tensor] = []
        """The tensors in the arguments, each once."""
        self._outputs: Any = None
        """What the block gave, with a place for each tensor: the number of a result, or ~ that of an input."""
        self._changed: list[int] = []
        """Numbers of the inputs that the block changes in place."""
        self._snapshot = _replaced(self._arguments, self._place)
        """The arguments as they are before the block runs, with the number of an input in place of each tensor."""
        self._contexts = [
            functools.partial(torch.autocast, kind, dtype, enabled, cache_enabled=False)
            for kind in {"cpu", *(one.device.type for one in self.inputs)}
            if torch.amp.is_autocast_available(kind)
            for dtype, enabled in [(torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))]
        ]
        """Autocast as it is now, without its cache: a weight that was cast without a graph gets no gradient."""

    def __call__(self) -> Any:
        """Runs the block, with a graph of one node.

        A result that is one of the inputs is that tensor itself, and inputs that the block changes are changed.
        """
        results = _Recompute.apply(self, *self.inputs, *self.weights)
        inputs, count = self.inputs, len(self._changed)
        for number, result in zip(self._changed, results[:count], strict=True):
            inputs[number].copy_(result)  # its values are the same, and now it has its graph
        found = results[count:]
        given = _filled(self._outputs, lambda number: inputs[~number] if number < 0 else found[number])
        del self.inputs, self._arguments, self._outputs  # the graph holds this call, and they hold the graph
        return given

    def kept(self) -> Inputs:
        """The inputs, kept for the backward pass."""
        return self.offload.keep(self.inputs) if self.offload else Inputs([keep(one.detach()) for one in self.inputs])

    def first(self) -> tuple[Tensor, ...]:
        """The block on its arguments themselves, without a graph: new values of changed inputs, then results."""
        versions = [*map(version, self.inputs)]
        args, kwargs = self._arguments
        with self._autocast(), self.attention.keeping() if self.attention else nullcontext():
            given = self._run(*args, **kwargs)
        self._changed = [number for number, one in enumerate(self.inputs) if version(one) != versions[number]]
        places = {id(one): ~number for number, one in enumerate(self.inputs)}
        results: list[Tensor] = []

        def place(tensor: Tensor) -> _Place:
            if id(tensor) not in places:
                places[id(tensor)] = len(results)
                results.append(tensor)
            return _Place(places[id(tensor)])

        self._outputs = _replaced(given, place)
        changed = [self.inputs[number].detach() for number in self._changed]
        if any(_overlap(one, other) for one, other in combinations(changed, 2)):
            raise TrainingError(
                "a block of this model changes memory that it is given twice, so that it cannot be recomputed. Switch "
                "off train.gradient_checkpointing"
            )
        # a view could not be changed in place by who gets it, and a tensor that was there before has its own graph
        given = (one.clone() if one._is_view() else one.detach() for one in results)  # noqa: SLF001
        return *(one.clone() for one in changed), *given

    def again(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same, with a graph to `inputs`, which have the values that those had before.

        Raises:
            TrainingError: if results depend on trained values that neither the block nor its arguments show: their
                gradient would be lost.
        """
        way = self._unread.way((self._snapshot, [one.args for one in self._contexts]), inputs)
        with self._autocast(), self.attention.given() if self.attention else nullcontext(), way:
            free = [one.clone() if number in self._changed else one for number, one in enumerate(inputs)]
            args, kwargs = _filled(self._snapshot, lambda number: free[number])
            given = self._run(*args, **kwargs)
        known = {id(one) for one in free}
        results: dict[int, Tensor] = {}
        _replaced(given, lambda one: one if id(one) in known else results.setdefault(id(one), one))
        found = [*(free[number] for number in self._changed), *results.values()]
        if way.is_new:
            _check_graph(found, [*inputs, *self.weights])
            way.learn(found)
        return found

    def _place(self, tensor: Tensor) -> _Place:
        self.inputs.append(tensor)
        return _Place(len(self.inputs) - 1)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context())
            yield


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        ctx.set_materialize_grads(False)
        ctx.call, ctx.kept = call, call.kept()
        return call.first()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        with ctx.call.around():
            return _Recompute._gradients(ctx, *gradients)

    @staticmethod
    def _gradients(ctx: Any, *gradients: Tensor | None) -> Any:
        call: _Call = ctx.call
        kept = ctx.kept.values()
        needed = ctx.needs_input_grad[1 : 1 + len(kept)]
        inputs = [one.detach().requires_grad_(need) for one, need in zip(kept, needed, strict=True)]
        del ctx.kept, ctx.call, kept  # what they hold is free when this call ends
        with torch.enable_grad():
            results = zip(call.again(inputs), gradients, strict=True)
            pairs = [(one, gradient) for one, gradient in results if gradient is not None and one.requires_grad]
        wanted = [*(one for one in inputs if one.requires_grad), *call.weights]
        if not pairs:
            return (None,) * (1 + len(needed) + len(call.weights))
        outputs, given = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, given, allow_unused=True))
        return None, *(next(found) if need else None for need in needed), *found


def _check_graph(results: Iterable[Tensor], known: Iterable[Tensor]) -> None:
    """Raises TrainingError if results depend on a trained leaf that is not known."""
    expected = {id(one) for one in known}
    for node in graph(results):
        variable = getattr(node, "variable", None)  # of leaves only
        if variable is not None and id(variable) not in expected:
            raise TrainingError(
                "a block of this model is given trained values in a form that cannot be looked into, so that it cannot "
                "be recomputed. Adapt fewer layers (adapter.targets) or switch off train.gradient_checkpointing"
            )


class _Place:
    """Stands for a tensor."""

    def __init__(self, number: int) -> None:
        self.number = number


def _replaced(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    return Rebuild(lambda part: replace(part) if isinstance(part, Tensor) else NotImplemented, (Tensor,))(value)


def _filled(value: Any, tensor: Callable[[int], Tensor]) -> Any:
    return Rebuild(lambda part: tensor(part.number) if isinstance(part, _Place) else NotImplemented, (_Place,))(value)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have an element in common."""
    if not {*memory(one)} & {*memory(other)} or not one.numel() or not other.numel():
        return False
    (start, stop), (other_start, other_stop) = _span(one), _span(other)
    first = min(start, other_start)
    seen = torch.zeros(max(stop, other_stop) - first, dtype=torch.bool)
    seen.as_strided(one.shape, one.stride(), start - first).fill_(True)
    return bool(seen.as_strided(other.shape, other.stride(), other_start - first).any())


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where in its memory a tensor begins and ends, in elements."""
    start = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return start, start + 1 + sum((size - 1) * int(step) for size, step in steps)
