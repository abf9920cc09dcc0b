"""A loaded model with fake tensors in place of its weights, to find out what training it takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...trainer_core.families.conditioning import Conditioning
from ...trainer_core.memory.imitation import imitate, on_real_tensors
from ...trainer_core.memory.packing import Packing, outline
from .base import ComfyBase
from .conditioning import Options
from .frozen import keep_no_weights
from .loading import TrainedModel, at_rest
from .shadow import shadow


class ImitatedModel(TrainedModel):
    """A MODEL's structure, on the CPU; nothing is loaded or moved for it."""

    def __init__(self, source: Any, packing: Packing | None) -> None:
        on_gpu = source.load_device.type != "cpu"
        with on_real_tensors():
            model: Any = shadow(at_rest(source).model)
            self.patcher = source.clone(model_override=(model, ({}, {}, {}, set())))
        self.patcher.patches = {}
        self.patcher.load_device = self.patcher.offload_device = torch.device("cpu")
        if packing:
            with on_real_tensors():
                outline(model.diffusion_model, packing, model.get_dtype_inference())
        # its block lists are cut under the name that the denoiser has for them
        imitate(model.diffusion_model, lambda _, tensor: tensor.dtype)
        keep_no_weights(model)
        self.model, self._options = model, None
        if on_gpu:  # there attention is mostly another function, which keeps as much, and does not run here
            self.options()["transformer_options"]["optimized_attention_override"] = _attention

    def load(self, latents: Sequence[int] = ()) -> None:  # noqa: ARG002
        """It is there."""
        self.patcher.pre_run()

    def unload(self) -> None:
        """Nothing is there."""
        self.patcher.cleanup()


def _attention(_function: Any, *args: Any, **kwargs: Any) -> Any:
    return attention_pytorch(*args, **kwargs)


class ImitatedBase(ComfyBase):
    """A base whose denoisers are imitated."""

    @classmethod
    def of(cls, base: ComfyBase) -> ImitatedBase:
        """The imitation of a base."""
        twin: ImitatedBase = copy.copy(base)  # type: ignore[assignment]
        twin.__class__ = cls
        twin.device, twin._trained, twin._turbo = torch.device("cpu"), {}, []
        return twin

    def load_denoiser(self, expert: str = "") -> nn.Module:
        place = [one.name for one in self.spec.experts].index(expert)
        name = self.config.quantization
        packing = None if name == "none" else Packing(name, low_rank=self.config.low_rank)
        trained = self._trained[expert] = ImitatedModel(self._linked.models[place], packing)
        return trained.denoiser

    def collate(self, samples: Sequence[Conditioning], guidance: Tensor | float | None = None) -> list[Options]:
        with on_real_tensors():  # texts are read
            return super().collate(samples, None if isinstance(guidance, Tensor) else guidance)
