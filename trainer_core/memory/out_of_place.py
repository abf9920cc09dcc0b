"""Compiling blocks that change what they are given (`img += …`), as many of ComfyUI's do.

torch compiles no graph that changes what its own gradient needs, and nothing inside a dispatch mode such as that of
`mutable_saved`. So a graph is rewritten to compute new values, and what its inputs have become is written into them
behind it, where `mutable_saved` sees it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from .saved import leave_unwatched, memory, version, watched

_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_CHECKPOINT = "tag_activation_checkpoint"
"""torch's name for a checkpointed part of a graph: its first argument is the part, the others are the part's inputs."""


class ChangedInputError(RuntimeError):
    """An input is changed in a way that cannot be written otherwise."""


def out_of_place(graph: GraphModule, example: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile: its usual one, over a graph that changes none of its inputs.

    Raises:
        ChangedInputError: if the graph cannot be rewritten.
    """
    from torch._dynamo import lookup_backend

    plain = copy.deepcopy(graph)
    values, count = rewrite(graph)
    compiled = lookup_backend("inductor")(graph, list(example))

    def run(*given: Any) -> Any:
        if _overlap(given, values):
            with watched():
                return plain(*given)
        versions = _versions(given)
        results = list(compiled(*given))
        if _versions(given) != versions:
            raise ChangedInputError("compiled code has changed what it was given")
        for gradient in _gradients(results) - _gradients(given):  # it overwrites nothing but what is its own
            leave_unwatched(gradient)
        with watched():
            for number, places in values.items():
                given[number].copy_(results[places[0]])
                for place in places:  # a block that gives back what it was given does so still
                    results[place] = given[number]
        return tuple(results[:count])

    return run


def _versions(given: Iterable[Any]) -> list[int]:
    return [version(one) for one in given if isinstance(one, Tensor)]


def _overlap(given: Sequence[Any], changed: Iterable[int]) -> bool:
    """Whether what is changed is in the memory of another input, too."""
    pieces = [{*memory(one)} if isinstance(one, Tensor) else set() for one in given] if changed else []
    return any(pieces[number] & other for number in changed for place, other in enumerate(pieces) if place != number)


def _gradients(values: Iterable[Any]) -> set[Any]:
    """What computes gradients through these values."""
    return {one.grad_fn for one in values if isinstance(one, Tensor) and one.grad_fn is not None}


def rewrite(graph: GraphModule) -> tuple[dict[int, list[int]], int]:
    """Makes a graph of Dynamo's compute new values where it changes tensors.

    Returns:
        The numbers of the inputs that it changed, each with the places of the new value among its outputs; and how many
        outputs it had: behind them are new values only.

    Raises:
        ChangedInputError: if an input is changed by an operation that is not known here, or is seen as a part of
            something else, or the other way round.
    """
    nodes = _Nodes(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == _CHECKPOINT:
            part = getattr(graph, node.args[0].target)
            for number, places in rewrite(part)[0].items():
                nodes.replace(node, node.args[1 + number], _element(node, places[0]))
        else:
            nodes.rewrite(node)
    output = graph.graph.output_node()
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]  # Dynamo gives a tuple
    count, values = len(results), {}
    for number, node in enumerate(graph.graph.find_nodes(op="placeholder")):
        if value := nodes.now.get(node):
            if value not in results:
                results.append(value)
            values[number] = [place for place, one in enumerate(results) if one is value]
    output.args = (tuple(results),)
    graph.recompile()
    return values, count


class _Nodes:
    """A graph's nodes, by the memory that they show, and what became of those that were changed."""

    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph.graph
        nodes = [*self._graph.nodes]
        self._order = {node: number for number, node in enumerate(nodes)}
        examples = ((node, node.meta.get("example_value")) for node in nodes)
        self._memory = {node: {*memory(value)} for node, value in examples if isinstance(value, Tensor)}
        self._inputs = [node for node in nodes if node.op == "placeholder" and node in self._memory]
        self._was: dict[Node, Node] = {}
        """Of a new value: what it replaces."""
        self.now: dict[Node, Node] = {}
        """Of what was changed: the last value."""

    def rewrite(self, node: Node) -> None:
        """Replaces what a node changes, if it does, by a new value.

        Where an operation is not known, or what it changes is seen otherwise, too, it stays as it is.

        Raises:
            ChangedInputError: if it would stay, and changes an input.
        """
        changed = _changed(node)
        was = self._was.get(changed, changed)
        if changed is None or was not in self._memory:
            return
        computed = _OPERATORS.get(node.target, _method(node))
        if computed is None or self._is_seen(node, was):
            if any(self._memory[one] & self._memory[was] for one in self._inputs):
                raise ChangedInputError(f"{node.name} changes an input, or a part of one")
            return
        with self._graph.inserting_after(node):
            value = self._graph.create_node(node.op, computed, node.args, node.kwargs)
        with self._graph.inserting_after(value):
            value = self._graph.call_method("to", (value, was.meta["example_value"].dtype))
        self.replace(node, changed, value)
        node.replace_all_uses_with(value)
        del self._memory[node]
        self._graph.erase_node(node)

    def replace(self, node: Node, changed: Node, value: Node) -> None:
        """Behind `node`, has a value stand where `changed` stood.

        Raises:
            ChangedInputError: if that is seen in another way there.
        """
        was = self._was.get(changed, changed)
        if self._is_seen(node, was):
            raise ChangedInputError(f"{node.name} changes an input, or a part of one")
        changed.replace_all_uses_with(value, lambda user: self._order.get(user, -1) > self._order[node])
        self._was[value], self.now[was] = was, value
        self._memory[value], self._order[value] = self._memory[was], self._order[node]

    def _is_seen(self, node: Node, was: Node) -> bool:
        """Whether what `node` changes is an input in part, or shown by another node that is read behind it."""
        at = self._order[node]
        return any(
            self._was.get(one, one) is not was
            and self._order[one] < at
            and pieces & self._memory[was]
            and (one.op == "placeholder" or any(self._order.get(user, -1) > at for user in one.users))
            for one, pieces in self._memory.items()
        )


def _changed(node: Node) -> Any:
    """The node whose tensor an operation changes, if it does."""
    if node.op not in ("call_function", "call_method") or not node.args:
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.target in _OPERATORS or node.target is operator.setitem or node.kwargs.get("inplace")
    if in_place or (name.endswith("_") and not name.endswith("__")):
        return node.args[0]
    return node.kwargs.get("out")


def _method(node: Node) -> str | None:
    """The method that computes what another one changes a tensor to."""
    name = str(node.target).removesuffix("_")
    return name if node.op == "call_method" and hasattr(Tensor, name) else None


def _element(node: Node, place: int) -> Node:
    """An element of what a node gives."""
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == place:
            return user
    with node.graph.inserting_after(node):
        return node.graph.call_function(operator.getitem, (node, place))
