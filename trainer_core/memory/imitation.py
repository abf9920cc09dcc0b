"""Models whose tensors are fake: they have shapes, types and a device, take no memory, and compute nothing.

Fake tensors are the CPU's, whatever device is planned for: there attention is one operation, as on GPUs, where the meta
device would take it apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as on_real_tensors

from .device_guard import keep_device_guard

__all__ = ["bytes_of", "imitate", "imitating", "on_real_tensors"]


_LENGTHS: ContextVar[Mapping[str, int]] = ContextVar("lengths", default={})  # noqa: B039 - never changed


@contextmanager
def imitating(lengths: Mapping[str, int] | None = None) -> Iterator[None]:
    """Tensors that are made inside are fake; real ones that operations are given count as fake ones.

    Args:
        lengths: path of a list of blocks → how many of them models get that are imitated inside.
    """
    keep_device_guard()
    known = _LENGTHS.set(lengths or {})
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        _LENGTHS.reset(known)


def imitate(model: nn.Module, dtype_of: Callable[[str, Tensor], torch.dtype]) -> nn.Module:
    """Puts fake tensors into a model, inside `imitating`; what was one tensor stays one.

    Args:
        dtype_of: what a tensor is to be, by its name, of those that are saved with the model.
    """
    for path, length in _LENGTHS.get().items():
        blocks = model.get_submodule(path)
        assert isinstance(blocks, nn.ModuleList)
        del blocks[length:]
    saved = model.state_dict(keep_vars=True)
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):  # noqa: SLF001 # under all names of each
            for name, tensor in held.items():
                if tensor is None:
                    continue
                whole = f"{path}.{name}" if path else name
                dtype = dtype_of(whole, tensor) if whole in saved else tensor.dtype
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=dtype)
                    made[id(tensor)] = nn.Parameter(fake, False) if isinstance(tensor, nn.Parameter) else fake
                held[name] = made[id(tensor)]
    return model


def bytes_of(model: nn.Module) -> int:
    """What a model's parameters and buffers take, each storage once; of quantized ones what they are packed as."""
    from .tracker import plain

    tensors = [part for one in (*model.parameters(), *model.buffers()) for part in plain(one)]
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())  # noqa: SLF001
