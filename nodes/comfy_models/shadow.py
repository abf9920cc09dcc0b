"""A model to train beside the one in the graph, of the same weights: which is never changed, and samples as before."""

from __future__ import annotations

import functools
import weakref
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .structure import Rebuild

_PAGING = {
    *("_v", "_v_signature", "_v_weight", "_v_bias", "_v_block", "_v_block_faulted", "_prefetch", "_pin_state"),
    *("_comfy_graph", "weight_lowvram_function", "bias_lowvram_function"),
    *("dynamic_vbars", "dynamic_pins", "dynamic_patchers"),
}
"""Where ComfyUI's dynamic VRAM notes what it has paged in of a model, and by which patcher."""


def shadow(model: nn.Module) -> nn.Module:
    """A copy of a model's modules and attributes whose frozen tensors are new, and share the original's memory.

    The tensors are ordinary ones even where the original's were made in inference mode, so that autograd can save
    them; quantized and other subclasses stay what they are. The copy can be patched, moved to a device, and given
    adapters. Writing into its weights would write into the original's: ModelPatcher replaces them instead, unless it
    is made with `weight_inplace_update`. Take it of a model that is not patched.
    """

    def replace(value: Any) -> Any:
        match value:
            case Tensor():
                return shared(value)
            case nn.Module():
                return module(value)
            case MethodType():  # bound to the copy
                return MethodType(value.__func__, rebuild(value.__self__))
            case functools.partial():
                return functools.partial(rebuild(value.func), *rebuild(value.args), **rebuild(value.keywords))
            case weakref.ref() if isinstance(target := value(), nn.Module):
                return weakref.ref(rebuild(target))
        return NotImplemented

    def module(original: nn.Module) -> nn.Module:
        made = type(original).__new__(type(original))
        rebuild.remember(original, made)
        for name, value in vars(original).items():
            if name not in _PAGING:
                vars(made)[name] = None if name == "current_patcher" else rebuild(value)
        return made

    def shared(original: Tensor) -> Tensor:
        parts: list[str] = []
        if hasattr(original, "__tensor_flatten__"):
            parts, context = original.__tensor_flatten__()
            inner = {name: rebuild(getattr(original, name)) for name in parts}
            made = type(original).__tensor_unflatten__(inner, context, original.size(), original.stride())  # type: ignore[attr-defined]
        else:
            plain = original.as_subclass(Tensor)
            place = plain.untyped_storage(), plain.storage_offset(), plain.size(), plain.stride()
            made = torch.empty(0, dtype=plain.dtype, device=plain.device).set_(*place).as_subclass(type(original))
        for name, value in vars(original).items():
            if name not in parts and name not in vars(made):
                vars(made)[name] = rebuild(value)
        return made

    rebuild = Rebuild(replace, (Tensor, nn.Module))
    with torch.inference_mode(False), torch.no_grad():
        return rebuild(model)  # type: ignore[no-any-return]
