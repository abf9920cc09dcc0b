"""The arguments that sd-scripts and musubi-tuner share: what becomes of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import models, optimizers, shared
from ..models import DTYPES
from ..rules import (
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
from . import network

DEFAULTS = {
    "network_dim": 4,
    "network_alpha": 1,
    "learning_rate": 2e-6,
    "max_train_steps": 1600,
    "optimizer_type": "AdamW",
    "optimizer_args": [],
    "lr_scheduler_power": 1,
    "timestep_sampling": "sigma",
}
"""What they take where an argument is missing, as far as that is not our default."""
_STATE = "a run is saved with all that it needs, and goes on from there; states of other tools are not read"
_METADATA = "the LoRA file's metadata is written by the run itself"


def _rate(value: Any, view: View) -> Outcome:
    if view["unet_lr"]:
        return Outcome("unused", "unet_lr counts")
    return Outcome("taken", fields={"train.learning_rate": number(value)})


def _steps(value: Any, view: View) -> Outcome:
    if view["max_train_epochs"]:
        return Outcome("unused", "max_train_epochs counts")
    return Outcome("taken", fields={"train.steps": value})


def every(name: str) -> Rule:
    """The rule of a number of steps, of which 0 is off."""
    return lambda value, _: Outcome("taken", fields={name: value}) if value else Outcome("unused", "is off")


def _warmup(value: Any, view: View) -> Outcome:
    steps = number(value)
    if not steps:
        return Outcome("unused", "is off")
    if view["lr_scheduler"] in (None, "constant"):
        return Outcome("dropped", "the schedule constant has no warm-up there; set train.warmup_steps to have one")
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


def compiled(value: Any, view: View) -> Outcome:
    """The rule of a switch that compiles the denoiser."""
    if not switch(value):
        return Outcome("unused", "is off")
    if view["network_dropout"]:
        return Outcome("dropped", "dropout would be compiled anew in each step")
    return Outcome("taken", fields={"memory.compile": True})


def timesteps(kinds: Callable[[str, View], str | None]) -> Rule:
    """The rule of how noise levels are drawn.

    Args:
        kinds: makes our word of the tool's; None if there is none.
    """

    def rule(value: Any, view: View) -> Outcome:
        kind = word(value)
        made = kinds(kind, view)
        if not made:
            return Outcome("dropped", f"{shown(kind)} is not there; train.timestep_type stays auto")
        fields = {"train.timestep_type": made}
        if made == kind == "sigmoid":
            return Outcome("taken", fields=fields)
        say = "as the base's own sampler visits them" if made == "shift" else f"{shown(kind)} is {made} here"
        return Outcome("converted", say, fields)

    return rule


TABLE: Table = {
    "vae": models.path("model.files.vae"),
    "model_type": drop(shared.FROM_BASE),
    "network_args": network.network_arguments,
    "network_dim": models.rank,
    "network_alpha": to("adapter.alpha", number),
    "network_dropout": to("adapter.dropout", number),
    "network_weights": models.path("adapter.warm_start"),
    "dim_from_weights": drop("adapter.rank must be the one of the LoRA that it starts from"),
    **each(drop(shared.MERGED), "base_weights base_weights_multiplier"),
    "scale_weight_norms": drop("weights are not scaled down"),
    "mixed_precision": one_of("model.dtype", DTYPES),
    **each(drop(shared.FLOAT32), "full_bf16 full_fp16"),
    "fp8_base": shared.float8("model.quantization"),
    "output_name": to("name", run_name),
    "output_dir": drop(shared.RUNS),
    "learning_rate": _rate,
    "max_train_steps": _steps,
    "max_train_epochs": shared.epochs("train.steps"),
    "gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    **shared.TRAIN,
    "blocks_to_swap": drop(shared.PLANNED),
    "optimizer_type": optimizers.named,
    "optimizer_args": _optimizer_options,
    "lr_scheduler": optimizers.schedule(None),
    "lr_warmup_steps": _warmup,
    "lr_scheduler_num_cycles": _only_with("cosine_with_restarts", "train.lr_cycles"),
    "lr_scheduler_power": _only_with("polynomial", "train.lr_power"),
    "lr_scheduler_min_lr_ratio": _only_with("cosine_with_min_lr", "train.lr_final_share"),
    **each(drop("has no counterpart"), "lr_decay_steps lr_scheduler_timescale lr_scheduler_type lr_scheduler_args"),
    "seed": to("train.seed", whole),
    **each(with_("timestep_sampling"), "weighting_scheme"),
    **each(drop(shared.LEVELS, 1), "sigmoid_scale logit_std"),
    "mode_scale": drop(shared.LEVELS, 1.29),
    "logit_mean": drop(shared.LEVELS),
    "guidance_scale": drop(shared.GUIDANCE, 1),
    "min_timestep": _thousandths("train.timestep_min"),
    "max_timestep": _thousandths("train.timestep_max"),
    "save_every_n_steps": every("save.every"),
    "save_every_n_epochs": shared.epochs("save.every", "save_every_n_steps"),
    "save_last_n_epochs": _keep,
    "save_last_n_steps": drop("save.keep says how many checkpoints are kept"),
    "save_precision": one_of("save.dtype", DTYPES),
    **each(drop(_STATE), "save_state save_state_on_train_end save_last_n_epochs_state save_last_n_steps_state resume"),
    "resume_from_huggingface": drop(_STATE),
    "sample_every_n_steps": every("sample.every"),
    "sample_every_n_epochs": shared.epochs("sample.every", "sample_every_n_steps"),
    "sample_at_first": to("sample.before_training", switch),
    "dynamo_backend": drop("blocks are compiled by torch's own backend", "inductor", "NO"),
    **each(drop(shared.ATTENTION), "xformers sdpa split_attn"),
    "max_data_loader_n_workers": drop("pictures come from the cache, without workers", 8),
    "persistent_data_loader_workers": drop("pictures come from the cache, without workers"),
    **each(drop(shared.METRICS), "logging_dir log_with log_prefix log_tracker_name log_tracker_config wandb_run_name"),
    "log_config": drop(shared.METRICS),
    **each(drop(shared.PRIVATE), "wandb_api_key huggingface_token"),
    **each(drop(shared.UPLOADED), "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo async_upload"),
    **each(drop(shared.UPLOADED), "huggingface_repo_visibility save_state_to_huggingface"),
    **each(
        drop("one process for each GPU: accelerate launch"), "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph"
    ),
    "config_file": drop("has no counterpart"),
    **each(drop(_METADATA), "no_metadata training_comment metadata_title metadata_author metadata_description"),
    **each(drop(_METADATA), "metadata_license metadata_tags metadata_usage_hint metadata_thumbnail"),
    **each(drop(_METADATA), "metadata_trigger_phrase metadata_merged_from metadata_preprocessor"),
    **each(drop(_METADATA), "metadata_reso metadata_arch"),
}
"""By argument; those of data sets are in tables of their own."""
