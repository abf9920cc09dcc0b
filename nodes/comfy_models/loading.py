"""MODEL, CLIP and VAE as ComfyUI hands them over: which links a base is made of, and a model of our own to train.

What comes over links is never changed. We train a copy of the model's structure that shares its weights (`shadow`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor, nn

from ...trainer_core.config import LINKS
from ...trainer_core.errors import BaseModelError
from ...trainer_core.memory.packed_linear import PackedLinear
from ...trainer_core.memory.packing import Packing, pack_in_place
from .digest import digest
from .frozen import keep_no_weights
from .quantized import as_loaded
from .shadow import shadow


@dataclass(frozen=True, eq=False)
class Linked:
    """What a base's links hold."""

    models: tuple[Any, ...]
    """MODELs; with several experts the one for the noisiest times first."""
    clip: Any = None
    vae: Any = None
    audio_vae: Any = None

    # ComfyUI's nodes never change what they have handed on; to read it all takes a minute for a large model

    @cached_property
    def models_digest(self) -> str:
        return digest(*map(model_state, self.models))

    @cached_property
    def clip_digest(self) -> str:
        return digest(clip_state(self.clip))

    @cached_property
    def vae_digest(self) -> str:
        return digest(vae_state(self.vae), *_states_of_sound(self))


_LINKED: WeakValueDictionary[str, Linked] = WeakValueDictionary()


def remember(linked: Linked) -> str:
    """The source that stands for links, in this and any other session; it is found as long as `linked` is kept."""
    source = (
        LINKS
        + digest(
            *map(model_state, linked.models),
            clip_state(linked.clip),
            vae_state(linked.vae),
            *_states_of_sound(linked),
            sampled=True,
        )[:16]
    )
    _LINKED[source] = linked
    return source


def recall(source: str) -> Linked:
    """What the links of a source hold.

    Raises:
        BaseModelError: if they are not there: the graph has not run in this session, or has changed.
    """
    linked = _LINKED.get(source)
    if linked is None:
        raise BaseModelError(
            f"model.source: {source}: the base came over the links of a ComfyUI graph that are not there now. Run the "
            "graph again, or name the model's files instead (model.source, model.files)"
        )
    return linked


def at_rest(patcher: Any) -> Any:
    """A MODEL or CLIP with the weights of its loader; ComfyUI leaves those of the clone that ran last in it."""
    for loaded in _loaded():
        if patcher.is_clone(loaded.model):
            _unload(loaded)
    if patcher.backup or patcher.object_patches_backup:  # of a clone that is no more
        with as_loaded(patcher.model):
            patcher.unpatch_model(patcher.offload_device)
    return patcher


def _loaded() -> list[Any]:
    """What is on a device, as ComfyUI notes it."""
    return [one for one in comfy.model_management.current_loaded_models if one.model is not None]


def _unload(loaded: Any) -> None:
    with as_loaded(loaded.model.model):
        loaded.model_unload()
    comfy.model_management.current_loaded_models.remove(loaded)


# --- what a digest looks at -------------------------------------------------------------------------------------------


def model_state(patcher: Any) -> list[Any]:
    """A MODEL's weights, and what nodes did to it that counts while training."""
    model = at_rest(patcher).model
    return [model.diffusion_model, type(model).__qualname__, sampling_of(patcher), *_patched(patcher)]


def clip_state(clip: Any) -> list[Any] | None:
    """A CLIP's weights, and what nodes did to it."""
    if clip is None:
        return None
    at_rest(clip.patcher)
    kind = type(clip.tokenizer).__qualname__
    return [
        clip.cond_stage_model,
        kind,
        clip.layer_idx,
        getattr(clip, "tokenizer_options", {}),
        *_patched(clip.patcher),
    ]


def vae_state(vae: Any) -> list[Any] | None:
    """A VAE's weights."""
    return None if vae is None else [vae.first_stage_model, str(getattr(vae, "vae_dtype", ""))]


def _states_of_sound(linked: Linked) -> list[Any]:
    return [] if linked.audio_vae is None else [vae_state(linked.audio_vae)]


def _patched(patcher: Any) -> list[Any]:
    options = {key: value for key, value in patcher.model_options.items() if key != "transformer_options"}
    transformer = patcher.model_options.get("transformer_options", {})
    around = [patcher.weight_wrapper_patches, patcher.wrappers, patcher.callbacks]
    return [patcher.patches, patcher.object_patches, options, transformer, *around]


_PASSES = 4
"""How many times the memory of a forward pass, as ComfyUI estimates it, training is given beside the weights. With
recomputed blocks it keeps their inputs and one block's graph; it was not measured on a GPU."""

# --- a model to train -------------------------------------------------------------------------------------------------


class TrainedModel:
    """A MODEL's copy for training: shares its weights, has what nodes merged into it, and belongs to us alone."""

    def __init__(self, source: Any) -> None:
        if source.is_dynamic():  # its weights come and go by a contract that only inference keeps
            source = source.clone(disable_dynamic=True)
        model: Any = shadow(at_rest(source).model)
        self.patcher = source.clone(model_override=(model, ({}, {}, {}, set())))
        # for ComfyUI it is no clone of the MODEL: neither is unloaded for the other, or takes its place when it ends
        self.patcher.parent, self.patcher.clone_base_uuid = None, uuid.uuid4()
        wrapped = self.patcher.weight_wrapper_patches
        for key, functions in list(wrapped.items()):  # where the weight is when its layer is adapted
            place, _, name = key.rpartition(".")
            wrapped[f"{place}.base_layer.{name}"] = functions
        for key in list(self.patcher.patches):
            merged = self.patcher.patch_weight_to_device(key, device_to=self.patcher.load_device, return_weight=True)
            comfy.utils.set_attr_param(model, key, _ordinary(merged.to(self.patcher.offload_device)))
        self.patcher.patches = {}
        keep_no_weights(model)
        self.model = model
        """A `comfy.model_base.BaseModel`."""
        self._options: dict[str, Any] | None = None
        self._room: float | None = None
        """Bytes that were left for training when it was loaded."""

    def pack(self, packing: Packing, dtype: torch.dtype) -> None:
        """Quantizes the layers of its blocks one by one, on its device, and leaves them where they were.

        What the file or another loader has quantized stays, and what nodes change each time that it computes.
        """
        pack_in_place(self.denoiser, packing, self.patcher.load_device, dtype, stays_as_it_is(self.patcher))

    @property
    def denoiser(self) -> nn.Module:
        """The module whose layers are adapted."""
        found: nn.Module = self.model.diffusion_model
        return found

    def load(self, latents: Sequence[int] = ()) -> None:
        """Brings the model to its device, wholly or, where memory is short, as far as it fits. Cheap if it is there.

        All others have to leave it first. The layers that do not fit stay in the computer's memory, and come to the
        device one by one when they compute. ComfyUI is not asked before each step: with what training keeps there at
        the moment, it would part the model anew every time.

        Args:
            latents: shape (N, C, …) of what it is about to be trained on, for which memory is left.
        """
        there = any(one.model is self.patcher for one in _loaded())
        for one in () if there else _loaded():
            _unload(one)
        room = _PASSES * self.model.memory_required(list(latents)) if latents else 0
        if not there or self._room is None or room > self._room:
            self.patcher.size = 0  # counted anew: weights that are streamed are not its business
            comfy.model_management.load_models_gpu([self.patcher], memory_required=room)
            self._room = room
        for parameter in self.denoiser.parameters():
            if parameter.requires_grad and parameter.device != self.patcher.load_device:
                parameter.data = parameter.data.to(self.patcher.load_device)
        for module in self.denoiser.modules():
            if isinstance(module, PackedLinear):  # ComfyUI brings layers one by one of its own kinds only
                module.to(self.patcher.load_device)
        self.patcher.pre_run()

    def make_room_anew(self) -> None:
        """Something else has been on the device, and may have pushed parts of the model off it: `load` looks again."""
        self._room = None

    def unload(self) -> None:
        """Takes it off the device, and has nodes forget what they keep while it runs."""
        self.patcher.cleanup()
        comfy.model_management.unload_model_and_clones(self.patcher)

    def options(self) -> dict[str, Any]:
        """The model's options with its wrappers and callbacks, as ComfyUI's sampler prepares them."""
        if self._options is None:
            options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)
            options.setdefault("transformer_options", {})
            comfy.sampler_helpers.prepare_model_patcher(self.patcher, {}, options)
            comfy.samplers.cast_to_load_options(
                options, device=self.patcher.load_device, dtype=self.patcher.model_dtype()
            )
            self._options = options
        return self._options


def stays_as_it_is(patcher: Any) -> Callable[[str, nn.Module], bool]:
    """Which layers of a MODEL, by their path and themselves, are not quantized by us."""

    def stays(path: str, layer: nn.Module) -> bool:
        plain = type(getattr(layer, "weight", None)) in (Tensor, nn.Parameter)
        return not plain or f"diffusion_model.{path}.weight" in patcher.weight_wrapper_patches

    return stays


def _ordinary(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def sampling_of(patcher: Any) -> Any:
    """A MODEL's `model_sampling`, with what nodes such as ModelSamplingSD3 set."""
    return patcher.get_model_object("model_sampling")


def on_cpu(tensor: Tensor) -> Tensor:
    """fp32 on the CPU, outside inference mode."""
    found = tensor.detach().to("cpu", torch.float32)
    return found.clone() if found.is_inference() else found
