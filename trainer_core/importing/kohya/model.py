"""sd-scripts' base model and network."""

from __future__ import annotations

from typing import Any

from .. import models, shared
from ..arguments import network
from ..rules import Outcome, Table, View, drop, each, listed, number, switch, to, word

_OF_TRANSFORMERS = ("clip_l", "clip_g", "t5xxl", "ae", "gemma2", "qwen3")
"""Arguments that only the trainings of transformers have."""


def is_transformer(view: View) -> bool:
    """Whether the base is no Stable Diffusion with a UNet, as far as the arguments tell."""
    module = str(view["network_module"] or "").rpartition(".")[2]
    return module in network.WHOLE_LAYERS or any(view[key] for key in _OF_TRANSFORMERS)


def _source(value: Any, view: View) -> Outcome:
    fields = {"model.source": word(value)}
    if not is_transformer(view):
        return Outcome("taken", fields=fields)
    if view["t5xxl"] and not view["clip_g"] and view["model_type"] in (None, "flux"):
        return Outcome("taken", fields={**fields, "model.family": "flux1"})
    return models.through_comfyui("this model", fields)


def _text_rates(value: Any, view: View) -> Outcome:
    rates = [number(one) for one in listed(value)]
    if not any(rates) or not _trains_text(view):
        return Outcome("unused", "no text encoder is trained")
    fields = {"train.text_encoder_lr": next(rate for rate in rates if rate)}
    if len({*rates}) > 1:
        return Outcome("converted", "is one for all text encoders here, the first", fields)
    return Outcome("taken", fields=fields)


def _trains_text(view: View) -> bool:
    rates = [one for one in listed(view["text_encoder_lr"]) if one is not None]
    off = view["network_train_unet_only"] is True or (rates and not any(rates))
    cached = view["cache_text_encoder_outputs"] is True or view["cache_text_encoder_outputs_to_disk"] is True
    return not off and not cached and not is_transformer(view)


def _unet_only(value: Any, view: View) -> Outcome:
    if switch(value):
        return Outcome("taken", fields={"adapter.text_encoders": False})
    if not _trains_text(view):
        text = "LoRAs of this model adapt the denoiser alone" if is_transformer(view) else "no text encoder is trained"
        return Outcome("dropped" if is_transformer(view) else "unused", text)
    fields: dict[str, Any] = {"adapter.text_encoders": True}
    if not view["text_encoder_lr"] and (rate := view["learning_rate"]):
        fields["train.text_encoder_lr"] = rate
    return Outcome("converted", "text encoders are trained too", fields)


TABLE: Table = {
    "pretrained_model_name_or_path": _source,
    **models.files({"clip_l": "text_encoder", "t5xxl": "text_encoder_2", "ae": "vae"}),
    **models.files({"clip_g": "text_encoder_3", "gemma2": "text_encoder", "qwen3": "text_encoder"}),
    **each(drop(shared.FROM_BASE), "v2 v_parameterization zero_terminal_snr discrete_flow_shift training_shift"),
    "network_module": network.module,
    "network_train_unet_only": _unet_only,
    "network_train_text_encoder_only": drop("the denoiser is always trained"),
    "text_encoder_lr": _text_rates,
    "fp8_base_unet": shared.float8("model.quantization"),
    "no_half_vae": to("model.vae_dtype", lambda value: "float32" if switch(value) else "auto", "float32"),
}
"""By argument."""
