"""AI Toolkit's base model and network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import models, shared
from ..models import DTYPES, MOST_RANK, OURS, UNETS
from ..rules import (
    Outcome,
    Rule,
    Table,
    View,
    drop,
    each,
    number,
    one_of,
    section,
    shown,
    switch,
    to,
    whole,
    with_,
    word,
)

_EVERYWHERE = {"adapter.targets": "all"}
"""It adapts every linear layer of the blocks."""
_FLAGS = {"model.is_flux": "flux", "model.is_xl": "sdxl", "model.is_v2": "sd2", "model.is_v3": "sd3"}
_FLAGS |= {f"model.is_{kind}": kind for kind in ("lumina2", "pixart", "pixart_sigma", "auraflow", "ssd", "vega")}


def family_of(view: View) -> str | None:
    """Our family of the job's base; None if it is another's."""
    arch = view["model.arch"]
    if arch is None:
        flags = (kind for flag, kind in _FLAGS.items() if view[flag] is True)
        return OURS.get(next(flags, "sd1"))
    return OURS.get(word(arch).lower().partition(":")[0])


def _flag(kind: str) -> Rule:
    """The rule of a switch that tells the base's kind."""

    def rule(value: Any, view: View) -> Outcome:
        if view["model.arch"] is not None or not switch(value):
            return Outcome("unused", "is off, or told by model.arch")
        return models.family(kind, view)

    return rule


def _source(value: Any, view: View) -> Outcome:
    source = word(value)
    if models.in_hub(source) and family_of(view) is None:
        say = f"{shown(source)} is in diffusers layout: name the diffusion model's file, as ComfyUI loads it"
        return Outcome("converted", say, {"model.source": source})
    return Outcome("taken", fields={"model.source": source})


def _quantized(switch_key: str, part: str, name: str) -> Rule:
    """Quantization by its type, if it is on; what follows a `|` is a recovery adapter."""

    def rule(value: Any, view: View) -> Outcome:
        # what text encoders do follows the denoiser where it is not said
        if not view.read(switch_key, switch, view.read("model.quantize", switch, False)):
            return Outcome("unused", f"{switch_key} is off")
        kind, _, adapter = word(value).partition("|")
        outcome = models.quantization(name)(kind, view)
        if adapter and part == "model" and outcome.fields:
            say = f"{outcome.text or shown(kind)}; its recovery adapter must be a file here".lstrip("; ")
            return Outcome("converted", say, {**outcome.fields, "model.recovery_adapter": adapter})
        return outcome

    return rule


def _rank(value: Any, view: View) -> Outcome:
    rank = whole(value)
    if view["network.rank"] is not None and rank != view["network.rank"]:
        return Outcome("unused", "network.rank counts")
    if view["network.type"] == "lokr" and view.read("network.lokr_full_rank", switch, True):
        say = "network.lokr_full_rank is on, so nothing is decomposed: the largest rank here"
        return Outcome("converted", say, {"adapter.rank": MOST_RANK, **_EVERYWHERE})
    made = models.rank(value, view)
    return replace(made, fields={**made.fields, **_EVERYWHERE})


def _alpha(value: Any, view: View) -> Outcome:
    alpha = number(value)
    if family_of(view) not in UNETS:
        return Outcome("converted", "AI Toolkit sets it to the rank for transformers, whatever it says")
    if view["network.type"] == "lokr" and view.read("network.lokr_full_rank", switch, True):
        return Outcome("unused", "has no effect with network.lokr_full_rank")
    return Outcome("taken", fields={"adapter.alpha": alpha})


def _training_adapter(value: Any, view: View) -> Outcome:
    if family_of(view):
        return Outcome("dropped", "training adapters are there for models that ComfyUI loads (model.family: comfyui)")
    say = "must be a file here; it is on while training, off while drawing, and no part of the LoRA"
    return Outcome("converted", say, {"model.files.training_adapter": word(value)})


def _of_convolutions(name: str) -> Rule:
    def rule(value: Any, view: View) -> Outcome:
        if family_of(view) not in UNETS:
            return Outcome("unused", "this model has no convolutions to adapt")
        return Outcome("taken", fields={name: min(number(value), MOST_RANK)})

    return rule


def _text_encoder(value: Any, view: View) -> Outcome:
    if switch(value) and family_of(view) not in UNETS:
        return Outcome("dropped", "LoRAs of this model adapt the denoiser alone")
    return Outcome("taken", fields={"adapter.text_encoders": value})


def _text_encoder_lr(value: Any, view: View) -> Outcome:
    if view["train.train_text_encoder"] is not True or family_of(view) not in UNETS:
        return Outcome("unused", "no text encoder is trained")
    return Outcome("taken", fields={"train.text_encoder_lr": number(value)})


def _experts(value: Any, _: View) -> Outcome:
    kinds = section(value)
    high, low = kinds.get("train_high_noise", True), kinds.get("train_low_noise", True)
    others = [key for key in kinds if key not in ("train_high_noise", "train_low_noise")]
    told = f"{', '.join(map(shown, others))} has no counterpart" if others else ""
    if high is low or not {"train_high_noise", "train_low_noise"} & set(kinds):
        return Outcome("dropped" if others else "unused", told or "both stages are trained")
    stage = "high_noise" if high else "low_noise"
    return Outcome("converted", f"only {stage}. {told}".strip(" ."), {"train.stages": stage})


_PLANNED = "memory is planned: what fits stays on the GPU (memory.plan)"
_LAYERS = "which layers are adapted says adapter.targets"

TABLE: Table = {
    "device": one_of("model.device", {"cuda": "auto", "cuda:0": "auto", **{k: k for k in ("cpu", "mps", "cuda:1")}}),
    "network.type": one_of("adapter.type", {**{k: k for k in ("lora", "dora", "lokr", "loha")}, "locon": "lora"}),
    "network.linear": _rank,
    "network.rank": _rank,
    **each(_alpha, "network.alpha network.linear_alpha"),
    "network.conv": _of_convolutions("adapter.conv_rank"),
    "network.conv_alpha": _of_convolutions("adapter.conv_alpha"),
    "network.dropout": to("adapter.dropout", number),
    "network.lokr_full_rank": with_("network.linear"),
    "network.lokr_factor": to("adapter.factor", whole),
    "network.pretrained_lora_path": models.path("adapter.warm_start"),
    **each(drop("files are written as ComfyUI reads them"), "network.old_lokr_format save.save_format"),
    **each(drop(_LAYERS), "network.network_kwargs.ignore_if_contains network.network_kwargs.only_if_contains"),
    **each(drop(_LAYERS), "network.network_kwargs.full_if_contains network.all_layers network.lorm"),
    **each(drop(shared.ONE_DROPOUT), "network.rank_dropout network.module_dropout"),
    **each(drop(_LAYERS, 1), "network.transformer_only network.split_multistage_loras"),
    "network.layer_offloading": drop(_PLANNED),
    "train.text_encoder_lr": _text_encoder_lr,
    "train.train_text_encoder": _text_encoder,
    "model.model_kwargs": _experts,
    "train.dtype": drop("model.dtype says it for the base; what is trained is kept in float32"),
    **each(drop("text encoders leave the memory by themselves, and captions count"), "train.unload_text_encoder"),
    "model.name_or_path": _source,
    "model.arch": models.family,
    **{flag: _flag(kind) for flag, kind in _FLAGS.items()},
    **each(with_("model.qtype"), "model.quantize"),
    **each(with_("model.qtype_te"), "model.quantize_te"),
    "model.qtype": _quantized("model.quantize", "model", "model.quantization"),
    "model.qtype_te": _quantized("model.quantize_te", "text", "model.text_encoder_quantization"),
    "model.accuracy_recovery_adapter": models.path("model.recovery_adapter"),
    "model.dtype": one_of("model.dtype", DTYPES),
    "model.vae_dtype": one_of("model.vae_dtype", DTYPES),
    "model.te_dtype": one_of("model.text_encoder_dtype", DTYPES),
    "model.text_encoder_bits": drop("model.text_encoder_quantization says how text encoders are held", 16),
    "model.vae_path": models.path("model.files.vae"),
    **each(
        drop("parts of other folders are files here: model.files"), "model.te_name_or_path model.extras_name_or_path"
    ),
    **each(drop("parts of other folders are files here: model.files"), "model.unet_path model.model_paths"),
    "model.assistant_lora_path": _training_adapter,
    **each(drop("only the LoRA that is trained is there"), "model.lora_path model.inference_lora_path"),
    "model.unconditional_lora_path": drop("only the LoRA that is trained is there"),
    **each(drop(_PLANNED), "model.low_vram model.layer_offloading model.auto_memory model.split_model_over_gpus"),
    **each(drop(_PLANNED, 1), "model.layer_offloading_transformer_percent model.layer_offloading_text_encoder_percent"),
    "model.compile": to("memory.compile", switch),
    **each(drop(shared.COMPILED, 1, "default"), "model.block_compile model.compile_mode"),
    **each(drop(shared.COMPILED), "model.compile_fullgraph model.compile_dynamic model.cache_size_limit"),
    **each(drop(shared.FROM_BASE), "model.is_v_pred model.use_flux_cfg model.attn_masking"),
    **each(drop(shared.FROM_BASE, 1), "model.use_text_encoder_1 model.use_text_encoder_2"),
    **each(drop(_LAYERS), "model.ignore_if_contains model.only_if_contains model.quantize_kwargs"),
    **each(drop("says nothing of a LoRA's training"), "model.refiner_name_or_path model.latent_space_version"),
}
"""By path within the process."""
