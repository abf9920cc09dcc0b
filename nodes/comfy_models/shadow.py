"""A model to train beside the one in the graph, in the same memory; that one is never changed and samples as before."""

from __future__ import annotations

import functools
import weakref
from types import MethodType
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...trainer_core.memory.structure import Rebuild, never_open

never_open(ModelPatcher)

_PAGING = {
    *("_v", "_v_signature", "_v_weight", "_v_bias", "_v_block", "_v_block_faulted", "_prefetch", "_pin_state"),
    *("_comfy_graph", "weight_lowvram_function", "bias_lowvram_function"),
    *("dynamic_vbars", "dynamic_pins", "dynamic_patchers"),
}
"""Where ComfyUI's dynamic VRAM notes what of a model is paged in, and by which patcher."""


def shadow(model: nn.Module) -> nn.Module:
    """A copy of a model's modules and attributes, whose frozen tensors are new ones in the original's memory.

    They are ordinary tensors even where the original's were made in inference mode, so that autograd can save them;
    quantized ones and other subclasses stay what they are. The copy can be patched, moved and adapted; `train()` and
    `eval()` reach what is added to it only. Take it of a model without patches in its weights. Writing into the copy's
    weights would write into the original's: ComfyUI's patcher replaces them instead, unless it is made with
    `weight_inplace_update`.
    """
    with torch.inference_mode(False), torch.no_grad():
        made: nn.Module = _Shadow()(model)
    return made


class _Shadow(Rebuild):
    def __init__(self) -> None:
        super().__init__(self._replaced, (Tensor, nn.Module))

    def _replaced(self, value: Any) -> Any:
        match value:
            case Tensor():
                return self._tensor(value)
            case nn.Module():
                return self._module(value)
            case MethodType():  # bound to the copy
                return MethodType(value.__func__, self(value.__self__))
            case functools.partial():
                return functools.partial(self(value.func), *self(value.args), **self(value.keywords))
            case weakref.ref() if isinstance(target := value(), nn.Module):
                return weakref.ref(self(target))
        return NotImplemented

    def _module(self, original: nn.Module) -> nn.Module:
        made = type(original).__new__(type(original))
        self.remember(original, made)
        for name, value in vars(original).items():
            if name not in _PAGING:
                vars(made)[name] = None if name == "current_patcher" else self(value)
        vars(made)["train"] = functools.partial(_train, weakref.ref(made))
        return made

    def _tensor(self, original: Tensor) -> Tensor:
        parts: list[str] = []
        if hasattr(original, "__tensor_flatten__"):
            parts, context = original.__tensor_flatten__()
            inner = {name: self(getattr(original, name)) for name in parts}
            kind: Any = type(original)
            made = kind.__tensor_unflatten__(inner, context, original.size(), original.stride())
        else:
            plain = original.as_subclass(Tensor)
            place = plain.untyped_storage(), plain.storage_offset(), plain.size(), plain.stride()
            made = torch.empty(0, dtype=plain.dtype, device=plain.device).set_(*place).as_subclass(type(original))
        for name, value in vars(original).items():
            if name not in parts and name not in vars(made):
                vars(made)[name] = self(value)
        return made


def _train(of: weakref.ref[nn.Module], mode: bool = True) -> nn.Module:
    """`Module.train` of a copied module, which stays as ComfyUI made it: PixArt would drop texts, others numbers."""
    module = of()
    assert module is not None
    for child in module.children():
        child.train(mode)
    return module
