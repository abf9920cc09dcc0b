"""diffusion-pipe's main file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import optimizers, shared
from ..models import DTYPES, UNETS
from ..rules import (
    Outcome,
    Rule,
    Table,
    View,
    drop,
    each,
    number,
    one_of,
    shown,
    switch,
    to,
    whole,
    with_,
    word,
)
from . import model
from .model import family_of

DEFAULTS = {"model.timestep_sample_method": "logit_normal"}
"""What it takes where a setting is missing, as far as that is not our default."""


def _rate(value: Any, view: View) -> Outcome:
    forced = view["force_constant_lr"]
    if forced or view["model.unet_lr"]:
        return Outcome("unused", f"{'force_constant_lr' if forced else 'model.unet_lr'} counts")
    return Outcome("taken", fields={"train.learning_rate": number(value)})


def _unet_rate(value: Any, view: View) -> Outcome:
    if view["force_constant_lr"]:
        return Outcome("unused", "force_constant_lr counts")
    return Outcome("taken", fields={"train.learning_rate": number(value)})


def _forced(value: Any, _: View) -> Outcome:
    return Outcome(
        "converted", "a constant rate", {"train.learning_rate": number(value), "train.lr_scheduler": "constant"}
    )


def _schedule(value: Any, view: View) -> Outcome:
    if view["force_constant_lr"]:
        return Outcome("unused", "force_constant_lr counts")
    outcome = optimizers.schedule(None)(value, view)
    if "constant" in (value, *outcome.fields.values()) or not outcome.fields:
        return outcome
    fields = dict(outcome.fields)
    lowest = view.read("model.unet_lr", number, 0.0) or view.read("optimizer.lr", number, 0.0)
    if value == "cosine" and lowest > 1e-6:
        fields["train.lr_final_share"] = 1e-6 / lowest
    return Outcome("converted", "falls until the last step of the job", fields)


def _optimizer(value: Any, view: View) -> Outcome:
    outcome = optimizers.named(value, view)
    if view["optimizer.weight_decay"] is not None:
        return outcome
    return replace(outcome, fields={**outcome.fields, "train.weight_decay": optimizers.decay(word(value))})


def _option(name: str) -> Rule:
    """One of the optimizer's options, which stand beside its name and rate."""
    return lambda value, view: optimizers.settings({name: value}, view.read("optimizer.type", word, "adamw"))


def _examples(name: str) -> Rule:
    """A number of pictures that is a number of steps here."""

    def rule(value: Any, view: View) -> Outcome:
        batch = view["micro_batch_size_per_gpu"]
        per_step = (batch if isinstance(batch, int) else 1) * view.read("gradient_accumulation_steps", whole, 1)
        steps = max(1, whole(value) // max(1, per_step))
        return Outcome("converted", f"{shown(value)} pictures are {steps} steps", {name: steps})

    return rule


def _evaluation(rule: Rule) -> Rule:
    """What counts only with data sets that are evaluated on."""
    off = Outcome("unused", "there are no eval_datasets")
    return lambda value, view: rule(value, view) if view["eval_datasets"] else off


def _batch(value: Any, _: View) -> Outcome:
    if not isinstance(value, list):
        return Outcome("taken", fields={"train.batch_size": whole(value)})
    sizes = [whole(one[1]) for one in value if isinstance(one, list) and len(one) == 2]
    if not sizes:
        raise ValueError(f"must be a number, or pairs of resolution and number, and is {shown(value)}")
    return Outcome("converted", "is one for all resolutions here, the smallest", {"train.batch_size": min(sizes)})


def _checkpointing(value: Any, _: View) -> Outcome:
    if value == "unsloth":
        say = "is on; whether what it keeps waits in the computer's memory is planned (memory.plan)"
        return Outcome("converted", say, {"train.gradient_checkpointing": True})
    return Outcome("taken", fields={"train.gradient_checkpointing": switch(value)})


def _huber(value: Any, _: View) -> Outcome:
    fields = {"train.loss_type": "smooth_l1", "train.huber_delta": number(value)}
    return Outcome("converted", "is smooth_l1 with the same bend here", fields)


def _corner(value: Any, _: View) -> Outcome:
    return Outcome("taken", fields={"train.loss_type": "huber", "train.huber_delta": number(value)})


def _timesteps(value: Any, view: View) -> Outcome:
    if family_of(view) in UNETS:
        return Outcome("unused", "acts on flow matching alone")
    shifted = any(view[f"model.{key}"] for key in ("flux_shift", "lumina_shift"))
    shifted = shifted or view.read("model.shift", number, 1.0) != 1
    made = "shift" if shifted else {"logit_normal": "sigmoid", "uniform": "linear"}.get(word(value))
    if made is None:
        return Outcome("dropped", f"{shown(value)} is not there; train.timestep_type stays auto")
    say = "as the base's own sampler visits them" if shifted else f"{shown(value)} is {made} here"
    return Outcome("converted", say, {"train.timestep_type": made})


_PARALLEL = "several GPUs train one run by accelerate launch, each with the whole base"

TABLE: Table = {
    **model.TABLE,
    "epochs": shared.epochs("train.steps", "max_steps"),
    "max_steps": to("train.steps", whole),
    "micro_batch_size_per_gpu": _batch,
    "image_micro_batch_size_per_gpu": drop("is one for pictures and clips: train.batch_size"),
    "gradient_accumulation_steps": to("train.gradient_accumulation", whole),
    "gradient_clipping": to("train.max_grad_norm", number),
    "warmup_steps": to("train.warmup_steps", whole),
    "lr_scheduler": _schedule,
    "force_constant_lr": _forced,
    "pseudo_huber_c": _huber,
    "huber_delta": _corner,
    "save_every_n_steps": to("save.every", whole),
    "save_every_n_epochs": shared.epochs("save.every", "save_every_n_steps"),
    "save_every_n_examples": _examples("save.every"),
    "save_dtype": one_of("save.dtype", DTYPES),
    **each(
        drop("save.every says how often the state is saved too"), "checkpoint_every_n_epochs checkpoint_every_n_minutes"
    ),
    "eval_every_n_steps": _evaluation(to("validation.every", whole)),
    "eval_every_n_epochs": _evaluation(shared.epochs("validation.every", "eval_every_n_steps")),
    "eval_every_n_examples": _evaluation(_examples("validation.every")),
    **each(drop("validation measures each picture by itself", 1), "eval_micro_batch_size_per_gpu"),
    **each(drop("validation measures each picture by itself", 1), "image_eval_micro_batch_size_per_gpu"),
    "eval_gradient_accumulation_steps": drop("validation measures each picture by itself", 1),
    "eval_before_first_step": _evaluation(drop("validation begins at its first step")),
    "disable_block_swap_for_eval": drop(shared.PLANNED),
    "eval_datasets": with_("dataset"),
    "activation_checkpointing": _checkpointing,
    "reentrant_activation_checkpointing": drop(shared.PLANNED),
    "blocks_to_swap": drop(shared.PLANNED),
    "compile": to("memory.compile", switch),
    **each(drop(_PARALLEL, 1, "parameters"), "pipeline_stages partition_method partition_split"),
    **each(drop(shared.CACHED, 1), "caching_batch_size"),
    **each(drop(shared.CACHED), "map_num_proc regenerate_cache model.cache_text_embeddings"),
    **each(drop(shared.METRICS, 1), "steps_per_print logging_steps"),
    **each(drop(shared.METRICS), "x_axis_examples monitoring.enable_wandb"),
    **each(drop(shared.METRICS), "monitoring.wandb_tracker_name monitoring.wandb_run_name"),
    "monitoring.wandb_api_key": drop(shared.PRIVATE),
    "resume_from_checkpoint": drop(shared.RESUMED),
    "model.timestep_sample_method": _timesteps,
    **each(with_("model.timestep_sample_method"), "model.shift model.flux_shift model.lumina_shift"),
    "model.sigmoid_scale": drop(shared.LEVELS, 1),
    "model.image_shift": drop(shared.LEVELS, 1),
    "model.min_t": to("train.timestep_min", number),
    "model.max_t": to("train.timestep_max", number),
    "model.min_snr_gamma": to("train.min_snr_gamma", number),
    "model.debiased_estimation_loss": drop("has no counterpart; min_snr_gamma has one"),
    "model.multiscale_loss_weight": drop("has no counterpart"),
    "model.unet_lr": _unet_rate,
    "optimizer.type": _optimizer,
    "optimizer.lr": _rate,
    **{
        f"optimizer.{name}": _option(name)
        for name in ("betas", "weight_decay", "eps", "momentum", "d_coef", "nesterov")
    },
    **{f"optimizer.{name}": _option(name) for name in ("decouple", "use_bias_correction", "safeguard_warmup", "d0")},
    **each(
        drop("the optimizer here has no such option"), "optimizer.stabilize optimizer.kahan_sum optimizer.decouple_lr"
    ),
    **each(
        drop("the optimizer here has no such option"), "optimizer.beta2_half_life optimizer.foreach optimizer.triton"
    ),
    "optimizer.gradient_release": drop("gradients are clipped and averaged before the step"),
}
"""By path; settings of data sets are in a table of their own."""
