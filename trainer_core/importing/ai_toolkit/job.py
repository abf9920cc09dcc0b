"""AI Toolkit's job: `config.process[0]`, but for its data sets and previews."""

from __future__ import annotations

from typing import Any

from .. import optimizers, shared
from ..models import DTYPES
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
from . import model

TRAINERS = frozenset({"sd_trainer", "diffusion_trainer", "ui_trainer", "custom_sd_trainer"})
"""Kinds of process that train a LoRA."""
DEFAULTS = {
    "network.linear": 4,
    "train.steps": 1000,
    "train.lr": 1e-6,
    "train.timestep_type": "sigmoid",
    "train.optimizer": "adamw",
    "model.qtype": "qfloat8",
    "model.qtype_te": "qfloat8",
    "train.optimizer_params": {},
    "save.dtype": "float16",
    "save.save_every": 1000,
    "save.max_step_saves_to_keep": 5,
}
"""What it takes where a setting is missing, as far as that is not our default."""


def _accumulation(value: Any, view: View) -> Outcome:
    passes = whole(value)
    if passes == 1:
        return Outcome("unused", "1 is what it is anyway")
    if passes < 1:
        return Outcome("dropped", "a whole epoch in one step is not there: set train.gradient_accumulation")
    steps = max(1, view.read("train.steps", whole, 1000) // passes)
    say = f"it counts passes as steps: {steps} steps of {passes} passes here"
    return Outcome("converted", say, {"train.gradient_accumulation": passes, "train.steps": steps})


def _steps(value: Any, view: View) -> Outcome:
    if view.read("train.gradient_accumulation_steps", whole, 1) > 1:
        return Outcome("taken", "goes with train.gradient_accumulation_steps")
    return Outcome("taken", fields={"train.steps": value})


def _limit(name: str) -> Rule:
    """The rule of a limit of noise levels, which are counted from pure noise downwards there."""

    def rule(value: Any, _: View) -> Outcome:
        if value in (0, 999, 1000):
            return Outcome("unused", "limits nothing")
        level = round(1 - number(value) / 1000, 6)
        return Outcome(
            "converted", f"{shown(value)} of 1000, counted from pure noise, is {level:g} here", {name: level}
        )

    return rule


def _schedule(value: Any, view: View) -> Outcome:
    if value == "linear":
        say = "rises there, from a third of the rate to all of it; constant here"
        return Outcome("converted", say, {"train.lr_scheduler": "constant"})
    return optimizers.schedule("train.lr_scheduler_params")(value, view)


def _ema(value: Any, _: View) -> Outcome:
    config = section(value)
    if not config.get("use_ema"):
        return Outcome("unused", "is off")
    left = [key for key in config if key not in ("use_ema", "ema_decay")]
    say = "the average follows faster at first (train.ema_warmup)"
    say += f"; {', '.join(map(shown, left))} has no counterpart" if left else ""
    return Outcome("converted", say, {"train.ema_decay": config.get("ema_decay", 0.999)})


def _loss(value: Any, _: View) -> Outcome:
    kind = word(value)
    if kind in ("mse", "mae"):
        return Outcome("taken", fields={"train.loss_type": kind})
    if kind == "pseudo_huber":
        fields = {"train.loss_type": "smooth_l1", "train.huber_delta": 0.01}
        return Outcome("converted", "is smooth_l1 with the same bend here", fields)
    return Outcome("dropped", f"{shown(kind)} is not there; train.loss_type stays mse")


def _guidance_target(value: Any, view: View) -> Outcome:
    if view["train.do_guidance_loss"] is not True:
        return Outcome("unused", "train.do_guidance_loss is off")
    if isinstance(value, list):
        return Outcome("dropped", "one scale for all pictures: set regularization.contrastive_guidance_scale")
    return Outcome("taken", fields={"regularization.contrastive_guidance_scale": value})


def _preserves(value: Any, view: View) -> Outcome:
    if not switch(value):
        return Outcome("unused", "is off")
    if not view["train.diff_output_preservation_class"] or not view["trigger_word"]:
        return Outcome("dropped", "needs a trigger and a class word: set both, then regularization.output_preservation")
    return Outcome("taken", fields={"regularization.output_preservation": True})


def _timesteps(value: Any, view: View) -> Outcome:
    if view["train.noise_scheduler"] != "flowmatch":
        return Outcome("unused", "acts on flow matching alone")
    return one_of("train.timestep_type", _TIMESTEPS)(value, view)


_TIMESTEPS = {kind: kind for kind in ("sigmoid", "linear", "weighted", "shift", "one_step")}
_TIMESTEPS |= dict.fromkeys(("flux_shift", "lumina2_shift"), "shift")
_PRESERVATION = "regularization.output_preservation"
_CONTRASTIVE = "regularization.contrastive_guidance"
_EXPERIMENT = "this experiment of AI Toolkit has no counterpart"

TABLE: Table = {
    **model.TABLE,
    **shared.below("train", shared.TRAIN | shared.UNET),
    "training_folder": drop(shared.RUNS),
    **each(drop("belongs to AI Toolkit's pages"), "sqlite_db_path performance_log_every logging.use_ui_logger"),
    "trigger_word": to("trigger", word),
    "save.dtype": one_of("save.dtype", DTYPES),
    "save.save_every": to("save.every", whole),
    "save.max_step_saves_to_keep": to("save.keep", whole),
    **each(drop(shared.UPLOADED), "save.push_to_hub save.hf_repo_id save.hf_private"),
    "logging.log_every": to("train.log_every", whole),
    **each(drop(shared.METRICS), "logging.use_wandb logging.project_name logging.run_name"),
    "logging.verbose": drop("there is one log, log.txt"),
    "train.steps": _steps,
    "train.batch_size": to("train.batch_size", whole),
    "train.gradient_accumulation": to("train.gradient_accumulation", whole),
    "train.gradient_accumulation_steps": _accumulation,
    "train.lr": optimizers.rate("train.optimizer"),
    "train.unet_lr": optimizers.other_rate("train.lr"),
    "train.train_unet": drop("the denoiser is always trained", 1),
    "train.optimizer": optimizers.named,
    "train.optimizer_params": optimizers.options("train.optimizer", epsilon=1e-6),
    "train.lr_scheduler": _schedule,
    "train.lr_scheduler_params": optimizers.schedule_options("train.lr_scheduler"),
    "train.noise_scheduler": drop("the base brings its own", "flowmatch", "ddpm"),
    "train.timestep_type": _timesteps,
    "train.linear_timesteps": drop("its bell has no counterpart: train.timestep_type weighted is the nearest"),
    "train.linear_timesteps2": drop("its bell has no counterpart: train.timestep_type weighted is the nearest"),
    "train.content_or_style": one_of(
        "train.timestep_bias", {"balanced": "balanced", "content": "high_noise", "style": "low_noise"}
    ),
    "train.min_denoising_steps": _limit("train.timestep_max"),
    "train.max_denoising_steps": _limit("train.timestep_min"),
    "train.switch_boundary_every": to("train.stage_switch_every", whole),
    "train.loss_type": _loss,
    "train.ema_config": _ema,
    "train.diff_output_preservation": _preserves,
    "train.diff_output_preservation_class": to(f"{_PRESERVATION}_class", word),
    "train.diff_output_preservation_multiplier": to(f"{_PRESERVATION}_weight", number),
    "train.blank_prompt_preservation": to("regularization.blank_preservation", switch),
    "train.blank_prompt_preservation_multiplier": to("regularization.blank_preservation_weight", number),
    "train.do_differential_guidance": to(
        "regularization.differential_guidance", switch, "works by itself here, and not only beside do_guidance_loss"
    ),
    "train.differential_guidance_scale": to("regularization.differential_guidance_scale", number),
    "train.do_guidance_loss": to(_CONTRASTIVE, switch),
    "train.guidance_loss_target": _guidance_target,
    "train.guidance_loss_schedule": one_of(f"{_CONTRASTIVE}_schedule", {k: k for k in ("constant", "sigma")}),
    "train.do_guidance_loss_cfg_zero": to(f"{_CONTRASTIVE}_projection", switch),
    "train.unconditional_prompt": drop("the promptless prediction has no prompt"),
    "train.skip_first_sample": to("sample.before_training", lambda value: not switch(value)),
    "train.disable_sampling": with_("sample.prompts"),
    "train.force_first_sample": drop("previews are drawn before the first step, and not at each start"),
    **each(drop(shared.CACHED), "train.cache_text_embeddings"),
    **each(drop(shared.ATTENTION, "native"), "train.attention_backend train.xformers train.sdp"),
    "train.bypass_guidance_embedding": drop(shared.GUIDANCE),
    "train.start_step": drop(shared.RESUMED),
    "train.reg_weight": drop("loss_weight of the regularization data set says it", 1),
    "train.num_train_timesteps": drop("noise levels are not counted here", 1000),
    "train.prompt_dropout_prob": drop("caption_dropout of the data sets says it"),
    "train.validation_config": drop("validation here is on data sets with the role validation, or validation.share"),
    **each(
        drop(_EXPERIMENT, 1),
        "train.noise_multiplier train.target_noise_multiplier train.img_multiplier train.latent_multiplier "
        "train.noisy_latent_multiplier train.pred_scaler train.cfg_scale train.max_cfg_scale "
        "train.audio_loss_multiplier train.optimal_noise_pairing_samples "
        "train.max_negative_prompts train.merge_network_on_save_strength",
    ),
    **each(
        drop(_EXPERIMENT),
        "train.snr_gamma train.learnable_snr_gos train.weight_jitter train.merge_network_on_save train.free_u "
        "train.random_noise_multiplier train.random_noise_shift train.do_signal_correction_noise train.negative_prompt "
        "train.do_batch_noise_correction train.do_signal_amplification train.adaptive_scaling_factor train.max_loss "
        "train.match_noise_norm train.short_and_long_captions train.single_item_batching train.inverted_mask_prior "
        "train.standardize_images train.standardize_latents train.dynamic_noise_offset train.do_cfg "
        "train.do_random_cfg train.cfg_rescale train.correct_pred_norm train.t0_loss_target train.do_fft_loss "
        "train.do_prior_divergence "
        "train.prompt_saturation_chance train.target_norm_std train.do_paramiter_swapping train.max_loss_debug "
        "train.latent_feature_extractor_path train.diffusion_feature_extractor_path train.force_consistent_noise "
        "train.blended_blur_noise train.do_blank_stabilization train.train_turbo train.show_turbo_outputs adapter "
        "slider embedding train.embedding_lr train.adapter_lr train.refiner_lr train.train_refiner train.loss_target",
    ),
}
"""By path within the process; data sets and previews have tables of their own."""
