"""A base by the names of its files, loaded by ComfyUI's own functions: for jobs without a graph, and for graphs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import comfy.model_sampling
import comfy.sd
import comfy.utils
import torch

from ...trainer_core.errors import BaseModelError, first_line
from ...trainer_core.families.sources.recognise import refuse_foreign
from . import traits
from .loading import Linked

if TYPE_CHECKING:
    from ...trainer_core.config import ModelConfig

LOW_NOISE = "model_low_noise"
"""Part: the second expert's file."""
TRAINING_ADAPTER = "training_adapter"
"""Part: a LoRA that is on while training and off while drawing."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
_CLIP_TYPES = {"GenmoMochi": "MOCHI", "LTXAV": "LTXV", "ZImage": "LUMINA2", "ZImagePixelSpace": "LUMINA2"}
"""Architectures whose text encoders ComfyUI calls otherwise than the nearest name in `comfy.sd.CLIPType`."""
_OPEN: WeakValueDictionary[tuple[Any, ...], Linked] = WeakValueDictionary()


def opened(config: ModelConfig) -> Linked:
    """What the loader nodes would give for a job's files; loaded once, as long as somebody keeps it.

    Raises:
        BaseModelError: if ComfyUI cannot load one, or a part is missing.
    """
    parts = sorted((part, file) for part, file in config.files.items() if part != TRAINING_ADAPTER)
    key = (config.source, tuple(parts), config.dtype)
    found = _OPEN.get(key)
    if found is None:
        found = _OPEN[key] = _loaded(config)
    return found


def _loaded(config: ModelConfig) -> Linked:
    options = {} if config.dtype == "auto" else {"dtype": getattr(torch, config.dtype)}
    model, clip, vae, *_ = _by_comfyui(
        "model.source",
        config.source,
        lambda file: comfy.sd.load_checkpoint_guess_config(file, model_options=options, disable_dynamic=True),
    )
    if model is None:
        raise BaseModelError(f"model.source: {config.source}: ComfyUI finds no diffusion model in it")
    models = [model]
    if second := config.files.get(LOW_NOISE):
        models.append(
            _by_comfyui(
                f"model.files.{LOW_NOISE}",
                second,
                lambda file: comfy.sd.load_diffusion_model(file, model_options=options, disable_dynamic=True),
            )
        )
    if texts := [config.files[part] for part in TEXT_ENCODERS if part in config.files]:
        kind = clip_type(traits.name_of(model.model))
        for text in texts:
            check_file("model.files", text)
        clip = _by_comfyui(
            "model.files.text_encoder",
            texts[0],
            lambda _: comfy.sd.load_clip(texts, clip_type=kind, disable_dynamic=True),
        )
    if file := config.files.get("vae"):
        vae = _by_comfyui("model.files.vae", file, _vae)
    if vae is not None and getattr(vae, "first_stage_model", None) is None:
        vae = None
    return Linked(tuple(models), clip, vae)


def clip_type(architecture: str) -> Any:
    """What `CLIPLoader` must be told for an architecture: the longest name of a CLIPType that its name begins with."""
    name = _CLIP_TYPES.get(architecture, architecture)
    plain = re.sub(r"[^A-Z0-9]", "", name.upper())
    kinds = [kind for kind in comfy.sd.CLIPType if plain.startswith(kind.name.replace("_", ""))]
    return max(kinds, key=lambda kind: len(kind.name), default=comfy.sd.CLIPType.STABLE_DIFFUSION)


def _vae(file: str) -> Any:
    weights, metadata = comfy.utils.load_torch_file(file, return_metadata=True)
    return comfy.sd.VAE(sd=weights, metadata=metadata)


def check_file(field: str, file: str) -> None:
    """Whether a file may be read: what is unpickled could run any code, though ComfyUI takes care.

    Raises:
        BaseModelError: if it is not there, or is no safetensors file.
    """
    if not Path(file).is_file():
        raise BaseModelError(f"{field}: {file}: there is no such file")
    refuse_foreign(Path(file))


def _by_comfyui(field: str, file: str, load: Any) -> Any:
    check_file(field, file)
    try:
        with torch.no_grad():
            return load(file)
    except (RuntimeError, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        raise BaseModelError(f"{field}: {file}: ComfyUI cannot load it: {first_line(error)}") from error


def load_diffusion_model(file: Path, shift: float | None) -> Any:
    """A MODEL from a denoiser's file.

    Args:
        shift: the fixed shift of the model's noise schedule, which the file does not tell; None leaves ComfyUI's own.
    """
    model = comfy.sd.load_diffusion_model(str(file))
    if shift is not None:
        model.add_object_patch("model_sampling", _flow_sampling(model, shift))
    return model


def _flow_sampling(model: Any, shift: float) -> Any:
    """What the stock node ModelSamplingSD3 sets, with the time scale that this model was detected with."""

    class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=model.model.model_config.sampling_settings.get("multiplier", 1000))
    return sampling
