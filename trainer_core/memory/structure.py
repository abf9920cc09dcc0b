"""Copies of nested containers and objects with parts replaced: of a model, or of what a block is given."""

from __future__ import annotations

import copy
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Replace = Callable[[Any], Any]
"""What takes the place of a part; NotImplemented: look inside."""

_closed: tuple[type, ...] = (
    *(type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, Enum, Tensor, nn.Module),
    *(threading.Thread, weakref.ref, torch.Generator),
)
"""Never opened: they are no containers of values, or lead to everything that is loaded."""


def never_open(kind: type) -> None:
    """Has objects of a host's type not looked into: they lead to everything that is loaded."""
    global _closed
    _closed = (*_closed, kind)


def attributes(value: Any) -> dict[str, Any]:
    """What a plain Python object holds, in its `__dict__` or slots; nothing for what is no such object."""
    if isinstance(value, _closed):
        return {}
    slots = [name for kind in type(value).__mro__ for name in _names(getattr(kind, "__slots__", ()))]
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def holds(value: Any, wanted: tuple[type, ...]) -> bool:
    """Whether there is an instance of such a type in a value, its items or its attributes, however deep."""
    waiting, seen = [value], {}
    while waiting:
        one = waiting.pop()
        if isinstance(one, wanted):
            return True
        if id(one) not in seen:
            seen[id(one)] = one
            waiting.extend(_items(one))
            waiting.extend(attributes(one).values())
    return False


class Rebuild:
    """Copies values with their parts replaced. What is shared in the original is shared in the copy.

    Containers are always copied, other objects only if they hold an instance of `wanted`.
    """

    def __init__(self, replace: Replace, wanted: tuple[type, ...]) -> None:
        self._replace, self._wanted = replace, wanted
        self._done: dict[int, tuple[Any, Any]] = {}
        """Originals by id, alive as long as their ids count, and their copies."""

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._done:
            replaced = self._replace(value)
            self.remember(value, self._copied(value) if replaced is NotImplemented else replaced)
        return self._done[id(value)][1]

    def remember(self, value: Any, made: Any) -> None:
        """The copy of a value, known before what is inside is copied: there may be a way back."""
        self._done[id(value)] = value, made

    def _copied(self, value: Any) -> Any:
        if isinstance(value, dict | list | deque | set):
            made: Any = copy.copy(value)
            self.remember(value, made)
            made.clear()
            if isinstance(value, dict):
                made.update((key, self(item)) for key, item in value.items())
            else:
                add = made.add if isinstance(made, set) else made.append
                for item in value:
                    add(self(item))
            return made
        if isinstance(value, tuple | frozenset):
            items = [self(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        held = attributes(value)
        if not held or not holds(value, self._wanted):
            return value
        made = _new(type(value))
        self.remember(value, made)
        for name, item in held.items():
            object.__setattr__(made, name, self(item))
        return made


def _new(kind: Any) -> Any:
    """An empty object. copy.copy asks objects for methods, and some of ComfyUI's have any name."""
    try:
        return object.__new__(kind)
    except TypeError:  # one that is not written in Python
        return kind.__new__(kind)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set | frozenset | deque) else ()


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
