"""The frozen tensors of a streamed block: where they belong in its modules, and where they lie in one piece of memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ALIGNMENT = 256
"""Bytes. What a GPU's kernels ask of an address, and more than the CPU's do."""


class _Piece(NamedTuple):
    """A plain tensor's place in memory."""

    start: int
    stop: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]

    def view(self, memory: Tensor) -> Tensor:
        return memory[self.start : self.stop].view(self.dtype).as_strided(self.size, self.stride)


class BlockWeights:
    """A block's frozen parameters and buffers, as plain attributes of their modules.

    There nothing that moves, counts or saves a model's weights finds them, and each can be another tensor at any time:
    a view of a slot while the block computes, else one in host memory.
    """

    def __init__(self, block: nn.Module, shared: set[int]) -> None:
        """
        Args:
            shared: ids of tensors that belong to other parts of the model, too; they stay where they are.
        """
        self.pinned: Tensor | None = None
        self._places: list[tuple[nn.Module, str, bool]] = []
        """Module, name, and whether it is a parameter."""
        self._tensors: list[Tensor] = []
        """In host memory, one for each place."""
        for module in block.modules():
            for name, tensor, is_parameter in _frozen(module):
                if id(tensor) not in shared:
                    self._places.append((module, name, is_parameter))
                    self._tensors.append(tensor)
        self._pieces: dict[int, _Piece] = {}
        """By the ids of `_tensors`' plain parts."""
        self.size = 0
        for part in (part for one in self._tensors for part in _parts(one)):
            if id(part) not in self._pieces:
                stop = self.size + part.numel() * part.itemsize
                self._pieces[id(part)] = _Piece(self.size, stop, part.dtype, part.size(), _dense_strides(part))
                self.size = math.ceil(stop / ALIGNMENT) * ALIGNMENT

    def take(self, pinned: Tensor | None) -> None:
        """Makes attributes of them, in host memory.

        Args:
            pinned: page-locked memory (size,) to move them into; without any they stay where they are on the CPU.
        """
        memory = pinned
        if memory is None and any(one.device.type != "cpu" for one in self._tensors):
            memory = torch.empty(self.size, dtype=torch.uint8)
        if memory is not None:
            self.write(memory)
            moved = self.views(memory)
            pieces = [self._pieces[id(part)] for one in self._tensors for part in _parts(one)]
            parts = [part for one in moved for part in _parts(one)]
            self._tensors = moved
            self._pieces = dict(zip(map(id, parts), pieces, strict=True))
        self.pinned = pinned
        for module, name, is_parameter in self._places:
            del (module._parameters if is_parameter else module._buffers)[name]
        self.put(self._tensors)

    def give_back(self) -> None:
        """Makes parameters and buffers of them again, in host memory."""
        for (module, name, is_parameter), tensor in zip(self._places, self._tensors, strict=True):
            del vars(module)[name]
            (module._parameters if is_parameter else module._buffers)[name] = tensor  # type: ignore[assignment]

    def put(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Lets the modules compute with some tensors, such as `views`; with those in host memory by default."""
        for (module, name, _), tensor in zip(self._places, tensors or self._tensors, strict=True):
            vars(module)[name] = tensor

    def views(self, memory: Tensor) -> list[Tensor]:
        """The same tensors in other memory (size,), whose version they share: autograd notices when it is written."""
        made: dict[int, Tensor] = {}
        for one in self._tensors:
            if id(one) not in made:
                made[id(one)] = _rebuilt(one, lambda part: self._pieces[id(part)].view(memory))
        return [made[id(one)] for one in self._tensors]

    @torch.no_grad()
    def write(self, memory: Tensor) -> None:
        """Copies them into uint8 (size,), on any device."""
        if self.pinned is not None:
            memory.copy_(self.pinned)
            return
        for part in {id(part): part for one in self._tensors for part in _parts(one)}.values():
            self._pieces[id(part)].view(memory).copy_(part)


def shared_tensors(model: nn.Module, blocks: Mapping[str, nn.Module]) -> set[int]:
    """Ids of the parameters and buffers of some blocks that belong to several of them, or to the rest of the model."""
    owners: Counter[int] = Counter()
    for block in blocks.values():
        owners.update({id(tensor) for module in block.modules() for tensor in _own(module).values()})
    roots = tuple(f"{path}." for path in blocks)
    outside = {
        id(tensor)
        for path, module in model.named_modules(remove_duplicate=False)
        if not f"{path}.".startswith(roots)
        for tensor in _own(module).values()
    }
    return outside | {one for one, count in owners.items() if count > 1}


def _own(module: nn.Module) -> dict[str, Tensor]:
    both = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in both.items() if tensor is not None}


def _frozen(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """The tensors that a module holds, with whether each is a parameter; none of a module that is trained."""
    own = _own(module)
    if not any(one.requires_grad for one in own.values()):
        for name, tensor in own.items():
            if _can_move(tensor):
                yield name, tensor, name in module._parameters


def _can_move(tensor: Tensor) -> bool:
    """Whether we can make the same tensor in other memory."""
    if hasattr(tensor, "__tensor_flatten__"):
        return all(_can_move(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_meta


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that one consists of: itself, or several if it is quantized."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    else:
        yield tensor


def _rebuilt(tensor: Tensor, moved: Any) -> Tensor:
    """A tensor whose plain parts are others."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        inner = {name: _rebuilt(getattr(tensor, name), moved) for name in names}
        kind: Any = type(tensor)
        made: Tensor = kind.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
        vars(made).update({name: value for name, value in vars(tensor).items() if name not in {*names, *vars(made)}})
    else:
        made = moved(tensor)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Those of a tensor, if it fills its memory without gaps; else of a contiguous one."""
    order = sorted(range(tensor.dim()), key=lambda axis: (-tensor.stride(axis), -tensor.size(axis)))
    dense = tensor.permute(order).is_contiguous()
    return tensor.stride() if dense else torch.empty(tensor.shape, device="meta").stride()
