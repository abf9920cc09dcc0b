"""A training adapter: a LoRA that undoes what makes a model turbo, while it is trained and not while it draws.

Distilled models (Z-Image Turbo, FLUX.1 schnell) lose their few steps when they are trained as they are. With such an
adapter on, a LoRA learns on a model that behaves as before its distillation; without it, it draws in few steps again.
It is never part of what is saved, and merged into nothing: it is added to its layers' outputs while it is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from ...trainer_core.errors import AdapterError, BaseModelError
from ...trainer_core.safetensors_file import read_tensors


class TrainingAdapter:
    """One file's layers, hooked to those of a model that belongs to us."""

    def __init__(self, file: Path, model: Any) -> None:
        """
        Args:
            model: a `comfy.model_base.BaseModel`.

        Raises:
            BaseModelError: if the file is no LoRA of linear layers for this model.
        """
        self.on = True
        """Whether it acts."""
        where = f"model.files.training_adapter: {file}"
        try:
            tensors = read_tensors(file)
        except AdapterError as error:
            raise BaseModelError(f"model.files.training_adapter: {error}") from None
        keys = comfy.lora.model_lora_keys_unet(model, {})
        found = comfy.lora.load_lora(tensors, keys, log_missing=False)
        if not found:
            raise BaseModelError(f"{where}: is no LoRA for this model")
        for key, adapter in found.items():
            path, offset = (key, None) if isinstance(key, str) else key[:2]
            if not _is_plain(adapter):
                raise BaseModelError(f"{where}: {path}: only plain LoRAs of linear layers can be training adapters")
            up, down, alpha = adapter.weights[:3]
            scale = 1.0 if alpha is None else alpha / down.shape[0]
            layer: nn.Module = model.get_submodule(path.removesuffix(".weight"))
            layer.register_forward_hook(_Added(self, up * scale, down, offset))

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it draws."""
        self.on = False
        try:
            yield
        finally:
            self.on = True


def _is_plain(adapter: Any) -> bool:
    """Whether it is two matrices and an alpha."""
    if not isinstance(adapter, LoRAAdapter):
        return False
    up, down, _, *more = adapter.weights
    return up.dim() == down.dim() == 2 and all(one is None for one in more)


class _Added:
    """Adds one layer's low-rank output."""

    def __init__(self, owner: TrainingAdapter, up: Tensor, down: Tensor, offset: tuple[int, int, int] | None) -> None:
        self._owner, self._up, self._down = owner, up, down
        self._rows = None if offset is None else slice(offset[1], offset[1] + offset[2])

    def __call__(self, _layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not self._owner.on:
            return None
        x: Tensor = args[0]
        if self._up.device != x.device or self._up.dtype != x.dtype:
            self._up, self._down = (one.to(x.device, x.dtype) for one in (self._up, self._down))
        added = F.linear(F.linear(x, self._down), self._up)
        if self._rows is None:
            return output + added
        changed = torch.zeros_like(output)
        changed[..., self._rows] = added
        return output + changed
