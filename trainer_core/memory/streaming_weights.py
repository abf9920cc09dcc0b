"""The frozen tensors of a streamed block: where they belong in its modules, and where in one piece of memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

_PARAMETER, _BUFFER, _PASSING = "parameter", "buffer", "buffer that is not saved"

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
        self.size = 0
        self.pinned: Tensor | None = None
        self._places: list[tuple[nn.Module, str, str]] = []
        """Module, name, and what it is to it."""
        self._tensors: list[Tensor] = []
        """In host memory, one for each place."""
        self._pieces: list[list[_Piece]] = []
        """Where each one's plain parts lie."""
        known: dict[int, list[_Piece]] = {}
        for module in block.modules():
            for name, tensor, kind in _frozen(module):
                if id(tensor) not in shared:
                    if id(tensor) not in known:
                        known[id(tensor)] = [self._add(part) for part in _parts(tensor)]
                    self._places.append((module, name, kind))
                    self._tensors.append(tensor)
                    self._pieces.append(known[id(tensor)])

    def _add(self, part: Tensor) -> _Piece:
        start, stop = self.size, self.size + part.numel() * part.itemsize
        self.size = math.ceil(stop / ALIGNMENT) * ALIGNMENT
        return _Piece(start, stop, part.dtype, part.size(), _dense_strides(part))

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
            self._tensors = self.views(memory)
        self.pinned = pinned
        for module, name, _ in self._places:
            delattr(module, name)
        self.put()

    def give_back(self) -> None:
        """Makes parameters and buffers of them again, in host memory."""
        for (module, name, kind), tensor in zip(self._places, self._tensors, strict=True):
            delattr(module, name)
            if kind == _PARAMETER:
                module.register_parameter(name, cast(nn.Parameter, tensor))
            else:
                module.register_buffer(name, tensor, persistent=kind == _BUFFER)

    def put(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Lets the modules compute with some tensors, such as `views`; with those in host memory by default."""
        for (module, name, _), tensor in zip(self._places, tensors or self._tensors, strict=True):
            vars(module)[name] = tensor

    def views(self, memory: Tensor) -> list[Tensor]:
        """The same tensors in other memory (size,), whose version they share: autograd notices when it is written."""
        return [
            _rebuilt(one, (piece.view(memory) for piece in pieces))
            for one, pieces in zip(self._tensors, self._pieces, strict=True)
        ]

    @torch.no_grad()
    def write(self, memory: Tensor) -> None:
        """Copies them into uint8 (size,), on any device."""
        if self.pinned is not None:
            memory.copy_(self.pinned)
            return
        for one, pieces in zip(self._tensors, self._pieces, strict=True):
            for part, piece in zip(_parts(one), pieces, strict=True):
                piece.view(memory).copy_(part)


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
    named = [module.named_parameters, module.named_buffers]
    return dict(chain.from_iterable(one(recurse=False, remove_duplicate=False) for one in named))


def _frozen(module: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """The tensors that a module holds, with what each is to it; none of a module that is trained."""
    own = _own(module)
    if not any(one.requires_grad for one in own.values()):
        passing = module._non_persistent_buffers_set  # noqa: SLF001
        for name, tensor in own.items():
            if _can_move(tensor):
                kind = _PASSING if name in passing else _BUFFER
                yield name, tensor, _PARAMETER if isinstance(tensor, nn.Parameter) else kind


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


def _rebuilt(tensor: Tensor, parts: Iterator[Tensor]) -> Tensor:
    """The same tensor with other plain parts."""
    if not hasattr(tensor, "__tensor_flatten__"):
        part = next(parts)
        return nn.Parameter(part, requires_grad=False) if isinstance(tensor, nn.Parameter) else part
    names, context = tensor.__tensor_flatten__()
    inner = {name: _rebuilt(getattr(tensor, name), parts) for name in names}
    kind: Any = type(tensor)
    made: Tensor = kind.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    # marks such as that it is a parameter
    vars(made).update({name: value for name, value in vars(tensor).items() if name not in {*names, *vars(made)}})
    return made


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Those of a tensor, if it fills its memory without gaps; else of a contiguous one."""
    order = sorted(range(tensor.dim()), key=lambda axis: (-tensor.stride()[axis], -tensor.shape[axis]))
    dense = tensor.permute(order).is_contiguous()
    return tensor.stride() if dense else torch.empty(tensor.shape, device="meta").stride()
