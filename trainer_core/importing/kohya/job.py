"""The arguments of sd-scripts' network trainings, as its `--config_file` has them."""

from __future__ import annotations

from typing import Any

from .. import optimizers, shared
from ..arguments import table
from ..rules import Outcome, Rule, Table, View, drop, each, number, shown, switch, with_, word
from . import model
from .model import is_transformer

DEFAULTS = {**table.DEFAULTS, "network_train_unet_only": False}
"""What it takes where an argument is missing, as far as that is not our default."""


def _unet_rate(value: Any, _: View) -> Outcome:
    return Outcome("taken", fields={"train.learning_rate": value}) if value else Outcome("unused", "is off")


def _flag_of(optimizer: str) -> Rule:
    def rule(value: Any, view: View) -> Outcome:
        return optimizers.named(optimizer, view) if switch(value) else Outcome("unused", "is off")

    return rule


def _loss(value: Any, view: View) -> Outcome:
    kinds = {"l2": "mse", "l1": "mae", "huber": "huber", "smooth_l1": "smooth_l1"}
    kind = kinds.get(word(value))
    if kind is None:
        return Outcome("dropped", f"{shown(value)} is not there; train.loss_type stays mse")
    if kind not in ("huber", "smooth_l1"):
        return Outcome("taken", f"{shown(value)} is {kind} here", {"train.loss_type": kind})
    bend = view.read("huber_c", number, 0.1)
    if view["huber_schedule"] == "constant":
        bend *= view.read("huber_scale", number, 1.0)
        say = "is half as steep here, and its bend is a corner"
    else:
        say = "is half as steep here, and its bend the same at all noise levels"
    return Outcome("converted", say, {"train.loss_type": kind, "train.huber_delta": bend})


def _timesteps(value: Any, view: View) -> Outcome:
    if not is_transformer(view):
        return Outcome("unused", "acts on flow matching alone")
    return table.timesteps(_kind)(value, view)


def _kind(kind: str, view: View) -> str | None:
    if kind == "sigma":
        return "sigmoid" if view["weighting_scheme"] == "logit_normal" else "shift"
    return {"uniform": "linear", "sigmoid": "sigmoid", "shift": "shift", "flux_shift": "shift"}.get(kind)


_NOISE = "this noise has no counterpart; noise_offset has one"
_READ = "text encoders read captions as the base's own pipeline does"

TABLE: Table = {
    **table.TABLE,
    **shared.UNET,
    **model.TABLE,
    "unet_lr": _unet_rate,
    **each(drop(shared.PLANNED), "cpu_offload_checkpointing lowram highvram fused_backward_pass"),
    "use_8bit_adam": _flag_of("AdamW8bit"),
    "use_lion_optimizer": _flag_of("Lion"),
    **each(drop("there is no schedule-free optimizer"), "optimizer_schedulefree_wrapper schedulefree_wrapper_args"),
    "loss_type": _loss,
    **each(with_("loss_type"), "huber_c huber_schedule huber_scale"),
    "timestep_sampling": _timesteps,
    "model_prediction_type": drop("predictions are used as they are", "raw"),
    **each(drop(_NOISE), "multires_noise_iterations perlin_noise adaptive_noise_scale noise_offset_random_strength"),
    **each(drop(_NOISE), "ip_noise_gamma ip_noise_gamma_random_strength"),
    "multires_noise_discount": drop(_NOISE, 0.3),
    **each(drop("has no counterpart; min_snr_gamma has one"), "debiased_estimation_loss v_pred_like_loss"),
    "scale_v_pred_loss_like_noise_pred": drop("has no counterpart; min_snr_gamma has one"),
    "save_n_epoch_ratio": drop("save.every says how often"),
    "save_model_as": drop("LoRAs are safetensors files", "safetensors"),
    **each(drop(shared.RESUMED), "skip_until_initial_step initial_epoch initial_step"),
    "sample_sampler": drop("the base brings its own sampler"),
    "validate_every_n_steps": table.every("validation.every"),
    "validate_every_n_epochs": shared.epochs("validation.every", "validate_every_n_steps"),
    "max_validation_steps": drop("all pictures that are held out are looked at"),
    "torch_compile": table.compiled,
    **each(drop(shared.ATTENTION), "mem_eff_attn attn_mode"),
    **each(drop(shared.CACHED), "cache_latents cache_latents_to_disk cache_text_encoder_outputs skip_cache_check"),
    "cache_text_encoder_outputs_to_disk": drop(shared.CACHED),
    **each(drop(shared.CACHED, 1), "vae_batch_size text_encoder_batch_size"),
    **each(drop(_READ), "clip_skip weighted_captions apply_t5_attn_mask apply_lg_attn_mask"),
    "max_token_length": drop(_READ, 75),
    "t5xxl_max_token_length": drop(_READ, 512),
    **each(drop("has no counterpart"), "split_mode clip_l_dropout_rate clip_g_dropout_rate t5_dropout_rate"),
    **each(drop("has no counterpart"), "controlnet_model_name_or_path tokenizer_cache_dir debug_dataset dataset_class"),
    **each(drop("has no counterpart"), "output_config disable_mmap_load_safetensors use_safetensors"),
    **each(drop("has no counterpart"), "console_log_level console_log_file console_log_simple"),
}
"""By argument; those of data sets are in a table of their own."""
