"""ComfyUI's conditioning: as entries of our cache, and as what a model's `apply_model` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from torch import Tensor

from ...trainer_core.errors import BaseModelError
from ...trainer_core.families.device import upload

if TYPE_CHECKING:
    from ...trainer_core.families.conditioning import TextEmbedding

Options = dict[str, Any]
"""One entry of ComfyUI's conditioning as one dictionary: `cross_attn`, `pooled_output`, `attention_mask`, …

Each tensor has a batch dimension of 1."""

KNOWN = "known_first_frame"
"""Our own entry: normalised latents (1, C, 1, h, w) of a first frame that stands in the place of noise (`video.py`)."""
_TREE = "json"
_TENSOR = "tensor"


def to_embedding(conditioning: Sequence[Sequence[Any]], dtype: torch.dtype) -> TextEmbedding:
    """What CLIP gives for one prompt, as tensors: those that it has, on the CPU, and the rest as the bytes of a JSON.

    Args:
        dtype: that the model computes in. ComfyUI casts all of this to it, so that 16 bits lose nothing here.

    Raises:
        BaseModelError: for a prompt with several entries, or with one that is neither tensor nor number, list or text.
    """
    if len(conditioning) != 1:
        raise BaseModelError(
            "this CLIP's prompts change while drawing (a schedule of hooks), which cannot be trained on"
        )
    cross, options = conditioning[0]
    tensors: dict[str, Tensor] = {}

    def packed(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            small = value.is_floating_point() and dtype.itemsize < value.itemsize
            tensors[name] = value.detach().to("cpu", dtype if small else value.dtype).clone().contiguous()
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            return {str(key): packed(one, f"{name}.{key}") for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [packed(one, f"{name}.{number}") for number, one in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise BaseModelError(f"this CLIP's conditioning holds {name}, a {type(value).__name__}, which cannot be kept")

    given = options if cross is None else {"cross_attn": cross, **options}
    text = json.dumps({key: packed(value, key) for key, value in given.items()}, sort_keys=True)
    tensors[_TREE] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return tensors


def to_options(embedding: TextEmbedding) -> Options:
    """The inverse of `to_embedding`."""

    def unpacked(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {_TENSOR}:
                return embedding[value[_TENSOR]]
            return {key: unpacked(one) for key, one in value.items()}
        return [unpacked(one) for one in value] if isinstance(value, list) else value

    tree = json.loads(bytes(embedding[_TREE].numpy().tobytes()).decode())
    return {key: unpacked(value) for key, value in tree.items()}


def to_comfy(options: Options) -> list[list[Any]]:
    """As ComfyUI's samplers take it."""
    rest = {key: value for key, value in options.items() if key not in ("cross_attn", KNOWN)}
    return [[options.get("cross_attn"), rest]]


def model_conds(model: Any, options: Options, x: Tensor, **given: Any) -> dict[str, Any]:
    """What the model makes of one sample's conditioning: name → an object of `comfy.conds`, on the device of x.

    Args:
        model: a `comfy.model_base.BaseModel`.
        x: the noisy latents (1, …), of which shape and device count.
        given: what else the sampler tells the model: `latent_image`, `denoise_mask`, `latent_shapes`.
    """
    entry = {**options, "model_conds": {}}
    entry.pop(KNOWN, None)
    usual = {"latent_image": torch.zeros_like(x), "denoise_mask": None, "seed": 0, "latent_shapes": [x.shape]}
    encode = comfy.samplers.encode_model_conds
    found = encode(model.extra_conds, [entry], x, x.device, "positive", **{**usual, **given})[0]["model_conds"]
    return {name: one.process_cond(batch_size=1, device=x.device, area=None) for name, one in found.items()}


def same_shape(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two samples' conds can be one batch, in which each counts as it does alone.

    ComfyUI also joins texts of unequal length, by repeating them, which is another result where the model has a mask.
    """
    if first.keys() != second.keys():
        return False
    return all(_shape(first[name]) == _shape(second[name]) and first[name].can_concat(second[name]) for name in first)


def _shape(cond: Any) -> Any:
    value = cond.cond
    return tuple(value.shape) if isinstance(value, Tensor) else None


def joined(conds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The conds of several samples of the `same_shape` as the arguments of `apply_model`."""
    first, *others = conds
    return {name: one.concat([other[name] for other in others]) for name, one in first.items()}


def moved(value: Any, device: torch.device) -> Any:
    """Tensors in lists and dictionaries, on the device."""
    if isinstance(value, Tensor):
        return upload(value, device)
    if isinstance(value, Mapping):
        return {key: moved(one, device) for key, one in value.items()}
    return [moved(one, device) for one in value] if isinstance(value, list) else value
