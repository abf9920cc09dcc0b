"""AI Toolkit's data sets and previews."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .. import models, shared
from ..rules import (
    Outcome,
    Table,
    View,
    drop,
    each,
    edge,
    listed,
    number,
    section,
    shown,
    switch,
    to,
    whole,
    with_,
    word,
)

DEFAULTS = {"resolution": 512, "mask_min_value": 0.0}
"""What a data set has where a setting is missing, as far as that is not our default."""


def _role(value: Any, view: View) -> Outcome:
    if view["prior_reg"] is True and not switch(value):
        return Outcome("unused", "prior_reg is on")
    return Outcome("taken", fields={".role": "regularization" if switch(value) else "train"})


def _trigger(value: Any, view: View) -> Outcome:
    if view["is_reg"] is True:
        return Outcome("dropped", "a regularization set shows its class without the trigger")
    return Outcome("taken", fields={".trigger": word(value)})


def _controls(value: Any, _: View) -> Outcome:
    folders = [word(one) for one in listed(value) if one]
    return Outcome("taken" if folders else "unused", fields={".control_folders": folders} if folders else {})


def _numbered_controls(value: Any, view: View) -> Outcome:
    return _controls([view[f"control_path_{k}"] for k in (1, 2, 3)], view) if value else Outcome("unused", "is empty")


def _spread(value: Any, view: View) -> Outcome:
    if view.read("num_frames", whole, 1) <= 1:
        return Outcome("unused", "there are no clips")
    if switch(value):
        say = "frames are not spread over a whole clip: they keep their speed, and clip_part says where they begin"
        return Outcome("dropped", say)
    return Outcome("converted", "one of several random parts of each clip", {".clip_part": "random"})


def _lengths(value: Any, _: View) -> Outcome:
    frames = whole(value)
    return Outcome("taken", fields={".frames": [frames]}) if frames > 1 else Outcome("unused", "there are no clips")


def _mask_minimum(value: Any, view: View) -> Outcome:
    if not view["mask_path"] and not view["alpha_mask"]:
        return Outcome("unused", "there are no masks")
    return Outcome("taken", fields={".mask_minimum": number(value)})


def _fps(value: Any, view: View) -> Outcome:
    if view["shrink_video_to_frames"] is not False:
        return Outcome("unused", "counts only without shrink_video_to_frames")
    return Outcome("taken", fields={".fps": number(value)})


def _prior(value: Any, _: View) -> Outcome:
    if not switch(value):
        return Outcome("unused", "is off")
    fields = {".role": "regularization", ".regularization_target": "base"}
    return Outcome("converted", "what the base predicts is the target (regularization_target)", fields)


def _resolutions(value: Any, _: View) -> Outcome:
    edges = [edge(one) for one in listed(value)]
    return Outcome("taken" if edges == listed(value) else "converted", f"edges {edges}", {".resolutions": edges})


TABLE: Table = {
    **shared.DATA,
    **each(models.path(".folder"), "folder_path dataset_path"),
    "type": with_("folder_path"),
    "default_caption": to(".default_caption", word),
    "trigger_word": _trigger,
    "caption_ext": to(".caption_extension", shared.extension),
    "caption_type": to(".caption_extension", shared.extension),
    "caption_dropout_rate": to(".caption_dropout", number),
    "shuffle_tokens": to(".shuffle_tags", switch),
    "token_dropout_rate": drop("captions are dropped whole: caption_dropout"),
    "is_reg": _role,
    "prior_reg": _prior,
    "network_weight": to(".adapter_strength", number),
    "loss_multiplier": to(".loss_weight", number),
    "resolution": _resolutions,
    "flip_x": to(".flip_x", switch),
    "flip_y": to(".flip_y", switch),
    "square_crop": drop("pictures keep their own aspect, in buckets"),
    "buckets": drop("buckets are always on", 1),
    "bucket_tolerance": drop(shared.BUCKETS, 64),
    "scale": drop("resolution alone says the size", 1),
    "random_scale": drop("resolution alone says the size"),
    "mask_path": models.path(".mask_folder"),
    "invert_mask": to(".invert_mask", switch),
    "mask_min_value": _mask_minimum,
    "control_path": _controls,
    **each(_numbered_controls, "control_path_1 control_path_2 control_path_3"),
    "control_transparent_color": drop("what is transparent has the colour of `background`"),
    "full_size_control_images": drop("the model says at which size it is given control images", 1),
    **each(drop("control images come from folders of their own"), "control_from_same_folder controls"),
    "num_controls_from_same_folder": drop("control images come from folders of their own", 1),
    "num_frames": _lengths,
    "shrink_video_to_frames": _spread,
    "fps": _fps,
    "auto_frame_count": drop("clips are trained on in the lengths of `frames`"),
    "trim_auto_frame_count_tail": drop("clips are trained on in the lengths of `frames`", 1),
    "do_i2v": to(".first_frame", switch),
    "do_audio": drop("sound is encoded where the model has it"),
    **each(drop("sound is encoded as it is"), "audio_preserve_pitch audio_normalize"),
    "batch_size": drop("there is one batch size, train.batch_size"),
    **each(drop(shared.CACHED), "cache_latents cache_latents_to_disk cache_text_embeddings cache_tensors_to_disk"),
    **each(drop(shared.CACHED), "cache_clip_vision_to_disk load_image_when_caching_latents cache_latents_num_workers"),
    **each(drop("pictures come from the cache, without workers"), "num_workers prefetch_factor fast_image_size debug"),
    **each(drop(shared.VARIED), "augments augmentations shuffle_augmentations standardize_images extra_values"),
    "replay_transforms": drop(shared.VARIED, 1),
    **each(drop("captions are used as they are written"), "random_triggers use_short_captions replacements"),
    "random_triggers_max": drop("captions are used as they are written", 1),
    "guidance_type": drop("has no counterpart", "targeted"),
    **each(
        drop("has no counterpart"), "inpaint_path unconditional_path clip_image_path clip_image_from_same_folder poi"
    ),
    **each(drop("has no counterpart"), "clip_image_augmentations clip_image_shuffle_augmentations"),
    **each(drop("is said for the whole job"), "diff_output_preservation diff_output_preservation_class"),
}
"""A data set's settings by key."""

SAMPLE_DEFAULTS = {"sample_every": 100, "width": 512, "height": 512, "seed": 0, "walk_seed": False, "sample_steps": 20}
"""What previews have where a setting is missing, as far as that is not our default."""
_FLAG = re.compile(r"\s--(\w+)\s+(?:(?!\s--\w).)*", re.DOTALL)
_PER_PROMPT = {"width", "height", "neg", "seed", "guidance_scale", "sample_steps", "num_frames", "fps"}
_PER_PROMPT |= {"network_multiplier", "do_cfg_norm", "ctrl_idx"}


def _bare(prompt: str) -> str:
    """A prompt without the options that may follow in it, such as `--w 512`."""
    return _FLAG.sub("", prompt).strip()


def _prompts(value: Any, view: View) -> Outcome:
    prompts = [word(one) for one in listed(value)]
    if view["disable"] is True:
        return Outcome("dropped", "train.disable_sampling is on: no previews")
    bare = [_bare(one) for one in prompts]
    say = "options within prompts (--w, --seed …) are one for all here: set them under sample"
    fields = {"sample.prompts": bare}
    return Outcome("taken", fields=fields) if bare == prompts else Outcome("converted", say, fields)


def _samples(value: Any, view: View) -> Outcome:
    """Previews as a list of prompts with settings of their own."""
    items = [section(one) for one in listed(value)]
    outcome = _prompts([one.get("prompt") or "" for one in items], view)
    if outcome.kind == "dropped":
        return outcome
    fields = dict(outcome.fields)
    told = [outcome.text] if outcome.text else []
    controls = [[one[key] for key in _images(one)] for one in items]
    if items and all(controls):
        fields["sample.controls"] = controls
    elif any(controls):
        told.append("some prompts have no control images: none are taken over")
    own = sorted({key for one in items for key in one if key in _PER_PROMPT})
    others = sorted({key for one in items for key in one if key != "prompt" and key not in _images(one)} - _PER_PROMPT)
    if own:
        told.append(f"{', '.join(own)}: one for all prompts here, those of sample")
    if others:
        told.append(f"not known here: {', '.join(map(shown, others))}")
    return Outcome("converted" if told else "taken", "; ".join(told), fields)


def _images(item: Mapping[str, Any]) -> list[str]:
    return [key for key in ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3") if item.get(key)]


def _frames(value: Any, _: View) -> Outcome:
    frames = whole(value)
    return Outcome("taken", fields={"sample.frames": frames}) if frames > 1 else Outcome("unused", "it draws pictures")


def _negative(value: Any, _: View) -> Outcome:
    return Outcome("taken", fields={"sample.negative_prompt": word(value)}) if value else Outcome("unused", "is empty")


SAMPLE: Table = {
    "prompts": _prompts,
    "samples": _samples,
    "disable": with_("prompts"),
    "sample_every": to("sample.every", whole),
    "width": to("sample.width", whole),
    "height": to("sample.height", whole),
    "neg": _negative,
    "seed": to("sample.seed", whole),
    "walk_seed": to("sample.walk_seed", switch),
    "guidance_scale": to("sample.guidance", number),
    "sample_steps": to("sample.steps", whole),
    "num_frames": _frames,
    "fps": drop("a preview plays as fast as the model makes it"),
    "sampler": drop("the base brings its own sampler", "flowmatch", "ddpm"),
    "sample_start_step": drop("previews are drawn from the start, every sample.every steps"),
    "network_multiplier": drop("previews are drawn with the LoRA as it is", 1),
    "format": drop("pictures are PNG, and clips WebP", "png"),
    "guidance_rescale": drop("has no counterpart"),
    "adapter_conditioning_scale": drop("has no counterpart", 1),
    **each(drop("has no counterpart"), "refiner_start_at extra_values do_cfg_norm"),
}
"""The previews' settings by key; `disable` is `train.disable_sampling`."""
