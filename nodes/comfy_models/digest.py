"""Digests of what ComfyUI has loaded: of weights, and of what nodes have done to a model since."""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from enum import Enum
from types import CellType, CodeType, FunctionType, MethodType, NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...trainer_core.memory.structure import attributes

if TYPE_CHECKING:
    from hashlib import _Hash

_SAMPLE = 4096
"""Bytes of each end of a tensor that a sampled digest looks at."""
_PIECE = 1 << 26
_DEEPEST = 8
"""Levels of objects within objects that are looked at."""


def digest(*values: Any, sampled: bool = False) -> str:
    """A digest of tensors, modules and settings, 64 hexadecimal digits, the same in every process.

    Functions count by their code and the values that it holds, objects by the names of their classes and
    their public attributes.

    Args:
        sampled: looks at both ends of large tensors only, to tell models apart at once.
    """
    state = hashlib.sha256()
    _Reader(state, sampled).add(values, 0)
    return state.hexdigest()


class _Reader:
    def __init__(self, state: _Hash, sampled: bool) -> None:
        self._state, self._sampled = state, sampled
        self._above: set[int] = set()

    def add(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device)):
            self._text(f"{type(value).__name__} {value!r}")
        elif id(value) in self._above or depth > _DEEPEST:
            self._text("…")
        else:
            self._above.add(id(value))
            self._compound(value, depth + 1)
            self._above.discard(id(value))

    def _compound(self, value: Any, depth: int) -> None:
        if isinstance(value, nn.Module):
            self._text(_kind_of(value))
            for name, tensor in sorted(value.state_dict().items()):
                self._text(name)
                self.add(tensor, depth)
            if "sigmas" in value.__dict__.get("_buffers", {}):  # a model_sampling, which is numbers more than tensors
                self.add({name: one for name, one in vars(value).items() if isinstance(one, (int, float))}, depth)
        elif isinstance(value, Mapping):
            for key, one in sorted(value.items(), key=lambda item: _name_of_key(item[0])):
                self._text(_name_of_key(key))
                self.add(one, depth)
        elif isinstance(value, (list, tuple)):
            self._text(f"{len(value)} of")
            for one in value:
                self.add(one, depth)
        elif isinstance(value, (set, frozenset)):
            self.add(sorted(map(digest, value)), depth)
        else:
            self._text(_kind_of(value))
            for part in _parts(value):
                self.add(part, depth)

    def _text(self, text: str) -> None:
        self._state.update(text.encode("utf-8", "surrogatepass") + b"\x1f")

    def _tensor(self, tensor: Tensor) -> None:
        self._text(f"{tuple(tensor.shape)} {tensor.dtype}")
        for part in _plain_tensors(tensor):
            flat = part.detach().reshape(-1)
            if self._sampled and flat.numel() * flat.element_size() > 2 * _SAMPLE:
                count = _SAMPLE // flat.element_size()
                flat = torch.cat([flat[:count], flat[-count:]])
            for piece in flat.split(max(1, _PIECE // flat.element_size())):
                self._state.update(memoryview(piece.cpu().contiguous().view(torch.uint8).numpy()))


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantized one is made of; an ordinary one is its own."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor.as_subclass(Tensor) if type(tensor) is not Tensor else tensor
        return
    for name in flatten()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _parts(value: Any) -> Iterator[Any]:
    """What functions and objects of one kind differ in."""
    if isinstance(value, FunctionType):
        yield from (value.__code__, value.__defaults__, value.__kwdefaults__, vars(value))
        yield from (cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY_CELL)
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, ModelPatcher):
        yield from (value.model, value.patches, value.object_patches)
    elif isinstance(value, np.ndarray | np.generic):
        yield from (str(value.dtype), value.shape, value.tobytes())
    elif not isinstance(value, uuid.UUID):
        yield _plain(attributes(value))


_EMPTY_CELL = CellType()


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that say what an object does, and not where it is or what it has been used for."""
    return {
        name: value
        for name, value in attributes.items()
        if not name.startswith("_") and not isinstance(value, torch.device)
    }


def _name_of_key(key: Any) -> str:
    return str(key) if isinstance(key, (str, int, float, tuple, Enum, NoneType)) else _kind_of(key)


def _kind_of(value: Any) -> str:
    """The name of a class or function, or of an object's class and of those that it inherits from."""
    named = [value] if isinstance(value, (type, FunctionType)) else type(value).__mro__[:-1]
    return " ".join(f"{one.__module__}.{one.__qualname__}" for one in named)
