"""Models with a LoRA added in their forward passes; nothing is merged, so nothing is rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .deltas import Delta, mapped
from .operations import Operation, device_of, layers_of
from .parsing import for_roots

if TYPE_CHECKING:
    from ..families.base import Base


@contextmanager
def applied(model: nn.Module, deltas: Mapping[str, Delta], strength: float) -> Iterator[None]:
    """The model with deltas, by module path, at a strength."""
    layers = layers_of(model)
    with ExitStack() as stack:
        for path, delta in deltas.items():
            module, operation = layers[path]
            moved = mapped(delta, device=device_of(module), dtype=torch.float32)
            hook = model.get_submodule(path).register_forward_hook(_added(moved, operation, strength))
            stack.callback(hook.remove)
        yield


@contextmanager
def applied_text(base: Base, deltas: Mapping[str, Delta], strength: float) -> Iterator[None]:
    """The loaded text encoders with their part of a LoRA, which `split_text` gives."""
    encoders = base.text_encoders()
    ours = for_roots(deltas, encoders, base)
    with ExitStack() as stack:
        for root, encoder in encoders.items():
            own = {path.removeprefix(f"{root}."): one for path, one in ours.items() if path.startswith(f"{root}.")}
            stack.enter_context(applied(encoder, own, strength))
        yield


def _added(delta: Delta, operation: Operation, strength: float) -> Callable[..., Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        added = delta.added(operation, inputs[0].float(), output, bias, strength)
        return (output.float() + added).to(output.dtype)

    return hook
