"""musubi-tuner's data sets: what each has, with what it inherits from `[general]`."""

from __future__ import annotations

from typing import Any

from .. import models, shared
from ..rules import Outcome, Table, View, drop, each, edge, listed, one_of, to, whole, with_, word

FOLDERS = ("image_directory", "video_directory")
LISTS = ("image_jsonl_file", "video_jsonl_file")
_OF_CLIPS = ("video_directory", "video_jsonl_file")
_LONGEST = 129
"""Frames of a clip that is taken whole, where a file does not say."""


def defaults(values: Any) -> dict[str, Any]:
    """What a data set has where a setting is missing, as far as that is not our default."""
    common = {"resolution": [960, 544]}
    if not any(values.get(key) for key in _OF_CLIPS):
        return common
    return common | ({} if values.get("frame_extraction") == "full" else {"target_frames": [1]})


def _controls(value: Any, view: View) -> Outcome:
    if any(view[key] for key in _OF_CLIPS):
        return Outcome("dropped", "clips have no control clips here")
    outcome = models.path(".control_folders")(value, view)
    say = "one control image for each picture, of the same name; numbered ones go into folders of their own"
    return Outcome("converted", say, {name: [folder] for name, folder in outcome.fields.items()})


def _frames(value: Any, view: View) -> Outcome:
    if not any(view[key] for key in _OF_CLIPS):
        return Outcome("unused", "there are no clips")
    if view["frame_extraction"] == "full":
        return Outcome("unused", "clips are taken whole: max_frames counts")
    return Outcome("taken", fields={".frames": [whole(one) for one in listed(value)]})


def _extraction(value: Any, view: View) -> Outcome:
    kind = word(value)
    if not any(view[key] for key in _OF_CLIPS):
        return Outcome("unused", "there are no clips")
    if kind == "full":
        most = view.read("max_frames", whole, _LONGEST)
        say = f"whole clips, of which those longer than {most} frames are cut; all are read in the model's speed"
        return Outcome("converted", say, {".frames": [most], ".clip_part": "start"})
    if kind == "chunk":
        return Outcome("converted", "as many parts as fit, spread evenly", {".clip_part": "uniform"})
    if kind == "uniform" and view.read("frame_sample", whole, 1) > 1:
        say = "as many parts as fit side by side, and not frame_sample of them"
        return Outcome("converted", say, {".clip_part": "uniform"})
    if kind == "slide":
        say = "one of several random parts in each draw, and not one every frame_stride frames"
        return Outcome("converted", say, {".clip_part": "random"})
    return one_of(".clip_part", {"head": "start", "uniform": "start"})(kind, view)


_CONTROL_SIZE = "the model says at which size it is given control images"
_RESIZED = "no_resize_control flux_kontext_no_resize_control qwen_image_edit_no_resize_control control_resolution"
_FRAMEPACK = "FramePack's own windows and indices have no counterpart"

TABLE: Table = {
    **each(models.path(".folder"), " ".join(FOLDERS)),
    **each(with_("folder"), " ".join(LISTS)),
    "num_repeats": shared.DATA["num_repeats"],
    "resolution": to(".resolutions", lambda value: [edge(value)]),
    "batch_size": to("train.batch_size", whole),
    "caption_extension": to(".caption_extension", shared.extension),
    "control_directory": _controls,
    **each(drop(_CONTROL_SIZE, 1), f"{_RESIZED} qwen_image_edit_control_resolution"),
    "multiple_target": drop("pictures in layers have no counterpart"),
    "target_frames": _frames,
    "frame_extraction": _extraction,
    **each(with_("frame_extraction"), "frame_stride frame_sample max_frames"),
    "source_fps": drop("clips say their own speed, and are resampled to that of the model (fps)"),
    "enable_bucket": drop("buckets are always on", 1),
    "bucket_no_upscale": drop("pictures are never enlarged", 1),
    "cache_directory": drop(shared.CACHED),
    "fp_latent_window_size": drop(_FRAMEPACK, 9),
    **each(drop(_FRAMEPACK), "fp_1f_clean_indices fp_1f_target_index fp_1f_no_post"),
    "debug_dataset": drop("`lora-foundry lint` looks at data sets"),
}
"""By key."""
