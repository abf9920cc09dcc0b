"""The arguments of sd-scripts' network trainings, as its `--config_file` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import optimizers
from ..models import DTYPES
from ..rules import (
    Epochs,
    Outcome,
    Rule,
    Share,
    Table,
    View,
    drop,
    each,
    number,
    one_of,
    run_name,
    shown,
    switch,
    to,
    whole,
    with_,
    word,
)
from . import model, network
from .model import is_transformer

DEFAULTS = {
    "network_dim": 4,
    "network_alpha": 1,
    "learning_rate": 2e-6,
    "max_train_steps": 1600,
    "optimizer_type": "AdamW",
    "optimizer_args": [],
    "lr_scheduler_power": 1,
    "network_train_unet_only": False,
    "timestep_sampling": "sigma",
}
"""What it takes where an argument is missing, as far as that is not our default."""


def _rate(value: Any, view: View) -> Outcome:
    if view["unet_lr"]:
        return Outcome("unused", "unet_lr counts")
    return Outcome("taken", fields={"train.learning_rate": number(value)})


def _unet_rate(value: Any, _: View) -> Outcome:
    return Outcome("taken", fields={"train.learning_rate": value}) if value else Outcome("unused", "is off")


def _steps(value: Any, view: View) -> Outcome:
    if view["max_train_epochs"]:
        return Outcome("unused", "max_train_epochs counts")
    return Outcome("taken", fields={"train.steps": value})


def epochs(name: str, instead: str = "") -> Rule:
    """The rule of a number of epochs that is a number of steps here.

    Args:
        instead: the key of the same in steps, which counts where both are set.
    """

    def rule(value: Any, view: View) -> Outcome:
        if not value or (instead and view[instead]):
            return Outcome("unused", f"{instead} counts" if value else "is off")
        return Outcome("converted", "epochs are steps here", {name: Epochs(number(value))})

    return rule


def _every(name: str) -> Rule:
    return lambda value, _: Outcome("taken", fields={name: value}) if value else Outcome("unused", "is off")


def _warmup(value: Any, view: View) -> Outcome:
    steps = number(value)
    if not steps:
        return Outcome("unused", "is off")
    if view["lr_scheduler"] in (None, "constant"):
        return Outcome("dropped", "sd-scripts' schedule constant has no warm-up; set train.warmup_steps to have one")
    if steps < 1:
        return Outcome("converted", f"{steps:g} of all steps", {"train.warmup_steps": Share(steps)})
    return Outcome("taken", fields={"train.warmup_steps": whole(value)})


def _only_with(schedule: str, name: str) -> Rule:
    """A schedule's own option."""

    def rule(value: Any, view: View) -> Outcome:
        if view["lr_scheduler"] != schedule:
            return Outcome("unused", f"belongs to lr_scheduler {schedule}")
        return Outcome("taken", fields={name: value})

    return rule


def _optimizer_options(value: Any, view: View) -> Outcome:
    name = view.read("optimizer_type", word, "AdamW")
    made = optimizers.settings(network.arguments(value), name)
    return replace(made, fields={"train.weight_decay": optimizers.decay(name), **made.fields})


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
    kind = word(value)
    if kind == "sigma":
        made = "sigmoid" if view["weighting_scheme"] == "logit_normal" else "shift"
    else:
        made = {"uniform": "linear", "sigmoid": "sigmoid", "shift": "shift", "flux_shift": "shift"}.get(kind, "")
    if not made:
        return Outcome("dropped", f"{shown(kind)} is not there; train.timestep_type stays auto")
    fields = {"train.timestep_type": made}
    if made == kind == "sigmoid":
        return Outcome("taken", fields=fields)
    say = "as the base's own sampler visits them" if made == "shift" else f"{shown(kind)} is {made} here"
    return Outcome("converted", say, fields)


def _thousandths(name: str) -> Rule:
    def rule(value: Any, _: View) -> Outcome:
        if value in (0, 1000):
            return Outcome("unused", "limits nothing")
        share = number(value) / 1000
        return Outcome("converted", f"{shown(value)} of 1000 is {share:g} here", {name: share})

    return rule


def _keep(value: Any, _: View) -> Outcome:
    if not value:
        return Outcome("unused", "is off")
    return Outcome("taken", fields={"save.keep": value})


def _compiled(value: Any, view: View) -> Outcome:
    if not switch(value):
        return Outcome("unused", "is off")
    if view["network_dropout"]:
        return Outcome("dropped", "dropout would be compiled anew in each step")
    return Outcome("taken", fields={"memory.compile": True})


_CACHED = "encoded pictures and captions are always cached on disk"
_METRICS = "metrics are in the run's metrics.jsonl"
_ATTENTION = "the fastest attention kernel is measured (memory.attention)"
_STATE = "a run is saved with all that it needs, and goes on from there; states of other tools are not read"
_PLANNED = "memory is planned (memory.plan)"
_NOISE = "this noise has no counterpart; noise_offset has one"
_METADATA = "the LoRA file's metadata is written by the run itself"
_READ = "text encoders read captions as the base's own pipeline does"

TABLE: Table = {
    **model.TABLE,
    "output_name": to("name", run_name),
    **each(drop("runs lie in one folder (--runs, or ComfyUI's output folder)"), "output_dir"),
    "learning_rate": _rate,
    "unet_lr": _unet_rate,
    "max_train_steps": _steps,
    "max_train_epochs": epochs("train.steps"),
    "gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    "gradient_checkpointing": to("train.gradient_checkpointing", switch),
    **each(drop(_PLANNED), "cpu_offload_checkpointing blocks_to_swap lowram highvram fused_backward_pass"),
    "optimizer_type": optimizers.named,
    "optimizer_args": _optimizer_options,
    "use_8bit_adam": _flag_of("AdamW8bit"),
    "use_lion_optimizer": _flag_of("Lion"),
    **each(drop("there is no schedule-free optimizer"), "optimizer_schedulefree_wrapper schedulefree_wrapper_args"),
    "lr_scheduler": optimizers.schedule(None),
    "lr_warmup_steps": _warmup,
    "lr_scheduler_num_cycles": _only_with("cosine_with_restarts", "train.lr_cycles"),
    "lr_scheduler_power": _only_with("polynomial", "train.lr_power"),
    "lr_scheduler_min_lr_ratio": _only_with("cosine_with_min_lr", "train.lr_final_share"),
    **each(drop("has no counterpart"), "lr_decay_steps lr_scheduler_timescale lr_scheduler_type lr_scheduler_args"),
    "max_grad_norm": to("train.max_grad_norm", number),
    "seed": to("train.seed", whole),
    "noise_offset": to("train.noise_offset", number),
    "min_snr_gamma": to("train.min_snr_gamma", number),
    "loss_type": _loss,
    **each(with_("loss_type"), "huber_c huber_schedule huber_scale"),
    "timestep_sampling": _timesteps,
    **each(with_("timestep_sampling"), "weighting_scheme"),
    **each(drop("noise levels have no parameters beside train.timestep_type", 1), "sigmoid_scale logit_std"),
    "mode_scale": drop("noise levels have no parameters beside train.timestep_type", 1.29),
    **each(drop("noise levels have no parameters beside train.timestep_type"), "logit_mean"),
    "model_prediction_type": drop("predictions are used as they are", "raw"),
    "guidance_scale": drop("the guidance input is 1 while training", 1),
    "min_timestep": _thousandths("train.timestep_min"),
    "max_timestep": _thousandths("train.timestep_max"),
    **each(drop(_NOISE), "multires_noise_iterations perlin_noise adaptive_noise_scale noise_offset_random_strength"),
    **each(drop(_NOISE), "ip_noise_gamma ip_noise_gamma_random_strength"),
    "multires_noise_discount": drop(_NOISE, 0.3),
    **each(drop("has no counterpart; min_snr_gamma has one"), "debiased_estimation_loss v_pred_like_loss"),
    "scale_v_pred_loss_like_noise_pred": drop("has no counterpart; min_snr_gamma has one"),
    "save_every_n_steps": _every("save.every"),
    "save_every_n_epochs": epochs("save.every", "save_every_n_steps"),
    "save_last_n_epochs": _keep,
    "save_last_n_steps": drop("save.keep says how many checkpoints are kept"),
    "save_n_epoch_ratio": drop("save.every says how often"),
    "save_precision": one_of("save.dtype", DTYPES),
    "save_model_as": drop("LoRAs are safetensors files", "safetensors"),
    **each(drop(_STATE), "save_state save_state_on_train_end save_last_n_epochs_state save_last_n_steps_state resume"),
    **each(drop(_STATE), "skip_until_initial_step initial_epoch initial_step resume_from_huggingface"),
    "sample_every_n_steps": _every("sample.every"),
    "sample_every_n_epochs": epochs("sample.every", "sample_every_n_steps"),
    "sample_at_first": to("sample.before_training", switch),
    "sample_sampler": drop("the base brings its own sampler"),
    "validate_every_n_steps": _every("validation.every"),
    "validate_every_n_epochs": epochs("validation.every", "validate_every_n_steps"),
    "max_validation_steps": drop("all pictures that are held out are looked at"),
    "torch_compile": _compiled,
    "dynamo_backend": drop("blocks are compiled by torch's own backend", "inductor"),
    **each(drop(_ATTENTION), "xformers sdpa mem_eff_attn split_attn attn_mode"),
    **each(drop(_CACHED), "cache_latents cache_latents_to_disk cache_text_encoder_outputs skip_cache_check"),
    **each(drop(_CACHED), "cache_text_encoder_outputs_to_disk"),
    **each(drop(_CACHED, 1), "vae_batch_size text_encoder_batch_size"),
    **each(drop("pictures come from the cache, without workers", 8), "max_data_loader_n_workers"),
    **each(drop("pictures come from the cache, without workers"), "persistent_data_loader_workers"),
    **each(
        drop(_METRICS), "logging_dir log_with log_prefix log_tracker_name log_tracker_config wandb_run_name log_config"
    ),
    **each(drop("a secret stays where it is"), "wandb_api_key huggingface_token"),
    **each(drop("nothing is uploaded here"), "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo"),
    **each(drop("nothing is uploaded here"), "huggingface_repo_visibility save_state_to_huggingface async_upload"),
    **each(
        drop("one process for each GPU: accelerate launch"), "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph"
    ),
    **each(drop(_READ), "clip_skip weighted_captions apply_t5_attn_mask apply_lg_attn_mask"),
    "max_token_length": drop(_READ, 75),
    "t5xxl_max_token_length": drop(_READ, 512),
    **each(drop("has no counterpart"), "split_mode clip_l_dropout_rate clip_g_dropout_rate t5_dropout_rate"),
    **each(drop("has no counterpart"), "controlnet_model_name_or_path tokenizer_cache_dir debug_dataset dataset_class"),
    **each(drop("has no counterpart"), "config_file output_config disable_mmap_load_safetensors use_safetensors"),
    **each(drop("has no counterpart"), "console_log_level console_log_file console_log_simple"),
    **each(drop(_METADATA), "no_metadata training_comment metadata_title metadata_author metadata_description"),
    **each(drop(_METADATA), "metadata_license metadata_tags metadata_usage_hint metadata_thumbnail"),
    **each(drop(_METADATA), "metadata_trigger_phrase metadata_merged_from metadata_preprocessor"),
}
"""By argument; those of data sets are in a table of their own."""


def flat(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments without the sections that they stand in, which mean nothing, and where each stands."""
    arguments: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value in values.items():
        for name, item in value.items() if isinstance(value, Mapping) else [(key, value)]:
            arguments[name] = item
            places[name] = f"{key}.{name}" if isinstance(value, Mapping) else name
    return arguments, places
