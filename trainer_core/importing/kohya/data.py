"""sd-scripts' data sets: what a subset has, with what it inherits from its data set, `[general]` and the arguments."""

from __future__ import annotations

from typing import Any

from .. import models, shared
from ..rules import Outcome, Table, View, drop, each, edge, number, switch, to, whole, with_, word

DEFAULTS = {"caption_extension": ".caption"}
"""What it takes where a setting is missing, as far as that is not our default."""
RENAMED = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats", "caption_extention": "caption_extension"}
"""Argument → what data sets call it."""


def _conditioning(value: Any, view: View) -> Outcome:
    if view["masked_loss"] is True:
        return models.path(".mask_folder")(value, view)
    return Outcome("dropped", "pictures of a ControlNet; masks need masked_loss")


def _masked(value: Any, view: View) -> Outcome:
    if not switch(value):
        return Outcome("unused", "is off")
    if view["conditioning_data_dir"] or view["alpha_mask"]:
        return Outcome("converted", "what is black keeps no weight", {".mask_minimum": 0.0})
    return Outcome("dropped", "there are no masks: no conditioning_data_dir and no alpha_mask")


def _wildcards(value: Any, _: View) -> Outcome:
    if not switch(value):
        return Outcome("unused", "is off")
    say = "one line of a caption file is drawn; words in braces stay as they are"
    return Outcome("converted", say, {".caption_per_line": True})


def _prior(value: Any, view: View) -> Outcome:
    if view["is_reg"] is not True:
        return Outcome("unused", "belongs to regularization sets")
    return Outcome("taken", fields={".loss_weight": value})


def _held_out(value: Any, _: View) -> Outcome:
    if not number(value):
        return Outcome("unused", "is off")
    share = number(value)
    if share > 0.5:
        return Outcome("converted", "half is the most that is held out here", {"validation.share": 0.5})
    return Outcome("taken", fields={"validation.share": share})


def _suffix(value: Any, view: View) -> Outcome:
    if value and view["caption_prefix"]:
        return Outcome("dropped", "caption_prefix is the trigger, and there is one: write it into the captions")
    return shared.added_text("end", "shuffle_caption")(value, view)


def _keep(value: Any, view: View) -> Outcome:
    kept = whole(value)
    prefix = view.read("caption_prefix", word, "")
    is_a_tag = prefix.endswith(",") and prefix.count(",") == 1
    if kept and is_a_tag and view["shuffle_caption"] and view["is_reg"] is not True:
        return Outcome("converted", "the trigger is one of them", {".keep_tags": kept - 1})
    return Outcome("taken", fields={".keep_tags": kept})


TABLE: Table = {
    **shared.DATA,
    "image_dir": models.path(".folder"),
    "kohya_folders": to(".kohya_folders"),
    **each(drop("data sets name their own captions: metadata_file"), "metadata_file in_json"),
    "is_reg": to(".role", lambda value: "regularization" if switch(value) else "train"),
    "class_tokens": to(".default_caption", word),
    "resolution": to(".resolutions", lambda value: [edge(value)]),
    "batch_size": to("train.batch_size", whole),
    "network_multiplier": to(".adapter_strength", number),
    "shuffle_caption": to(".shuffle_tags", switch),
    "keep_tokens": _keep,
    "caption_extension": to(".caption_extension", shared.extension),
    "flip_aug": to(".flip_x", switch),
    "conditioning_data_dir": _conditioning,
    "masked_loss": _masked,
    "caption_dropout_rate": shared.dropout,
    "enable_wildcard": _wildcards,
    "prior_loss_weight": _prior,
    "validation_split": _held_out,
    "validation_seed": drop("what is held out follows from train.seed"),
    **each(drop(shared.BUCKETS), "bucket_reso_steps min_bucket_reso max_bucket_reso"),
    "enable_bucket": drop("buckets are always on", 1),
    "bucket_no_upscale": drop("pictures are never enlarged", 1),
    "caption_prefix": shared.added_text("start", "shuffle_caption"),
    "caption_suffix": _suffix,
    **each(drop(shared.WRITTEN), "keep_tokens_separator secondary_separator"),
    "caption_separator": drop(shared.WRITTEN, ","),
    **each(
        drop("captions are dropped whole: caption_dropout"), "caption_tag_dropout_rate caption_dropout_every_n_epochs"
    ),
    "token_warmup_min": drop("all tags are there from the start", 1),
    "token_warmup_step": drop("all tags are there from the start"),
    **each(drop(shared.VARIED), "color_aug face_crop_aug_range resize_interpolation"),
    **each(drop("what was read of a picture is always kept"), "cache_info"),
    "custom_attributes": drop("has no counterpart"),
    **each(with_("image_dir"), "train_data_dir reg_data_dir"),
}
"""By key, as data sets call it."""

ARGUMENTS = {*TABLE, *RENAMED} - {"kohya_folders", "image_dir", "is_reg", "class_tokens", "metadata_file"}
"""Arguments that describe data sets."""
