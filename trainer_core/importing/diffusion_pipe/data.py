"""diffusion-pipe's data sets: what a directory has, with what it inherits from its file and from the main one."""

from __future__ import annotations

from typing import Any

from .. import models, shared
from ..rules import Outcome, Table, View, drop, each, edge, listed, number, one_of, shown, switch, to, whole, word


def _masks(value: Any, view: View) -> Outcome:
    outcome = models.path(".mask_folder")(value, view)
    return Outcome(outcome.kind, outcome.text, {**outcome.fields, ".mask_minimum": 0.0}) if outcome.fields else outcome


def _edges(value: Any, view: View) -> Outcome:
    if view["size_buckets"]:
        return Outcome("unused", "size_buckets counts")
    edges = [edge(one) for one in listed(value)]
    return Outcome("taken" if edges == listed(value) else "converted", f"edges {edges}", {".resolutions": edges})


def _sizes(value: Any, _: View) -> Outcome:
    sizes = [listed(one) for one in listed(value)]
    if not sizes or any(len(size) != 3 for size in sizes):
        raise ValueError(f"must be a list of width, height and frames, and is {shown(value)}")
    fields: dict[str, Any] = {".resolutions": sorted({edge(size[:2]) for size in sizes})}
    if clips := sorted({length for size in sizes if (length := whole(size[2])) > 1}):
        fields[".frames"] = clips
    return Outcome("converted", "buckets of the same areas, in all aspects that the pictures have", fields)


def _frames(value: Any, view: View) -> Outcome:
    if view["size_buckets"]:
        return Outcome("unused", "size_buckets counts")
    lengths = [whole(one) for one in listed(value)]
    clips = [length for length in lengths if length > 1]
    # a length of 1 is that of pictures, which need none
    return Outcome("taken", fields={".frames": clips}) if clips else Outcome("unused", "there are no clips")


def _shuffles(value: Any, _: View) -> Outcome:
    if not number(value):
        return Outcome("unused", "is off")
    return Outcome("converted", "eight shuffles of each caption are cached", {".shuffle_tags": True})


def _first_frame(value: Any, _: View) -> Outcome:
    share = number(value)
    if share in (0, 1):
        return Outcome("taken", fields={".first_frame": share == 1})
    say = f"the first frame is given always or never, not {share:g} of the time"
    return Outcome("converted", say, {".first_frame": share >= 0.5})


_BUCKETS = "buckets follow from the pictures' own aspects"

TABLE: Table = {
    "path": models.path(".folder"),
    "mask_path": _masks,
    "control_path": lambda value, view: _folders(models.path(".control_folders")(value, view)),
    "num_repeats": shared.DATA["num_repeats"],
    "resolutions": _edges,
    "size_buckets": _sizes,
    "frame_buckets": _frames,
    "enable_ar_bucket": drop("buckets are always on", 1),
    **each(drop(_BUCKETS), "min_ar max_ar num_ar_buckets ar_buckets"),
    "shuffle_tags": to(".shuffle_tags", switch),
    "cache_shuffle_num": _shuffles,
    "cache_shuffle_delimiter": drop("tags are separated by commas", ", ", ","),
    "caption_prefix": shared.added_text("start", "shuffle_tags cache_shuffle_num", glue=True),
    "skip_empty_caption": drop("a picture without caption is an error, unless default_caption is set", 1),
    "online_captions": drop("captions stand in caption files, or in a metadata.jsonl"),
    "default_mask_file": drop("pictures without mask are an error: give each its own"),
    "subsample_ratio": drop("all pictures of a folder are trained on"),
    "shuffle_metadata": drop("the order follows from train.seed", 1),
    "video_clip_mode": one_of(".clip_part", {"single_beginning": "start", "single_middle": "middle"}),
    "uncond_fraction": shared.dropout,
    "first_frame_conditioning_p": _first_frame,
    "role": to(".role", word),
}
"""By key; `role` is not the file's own."""


def _folders(outcome: Outcome) -> Outcome:
    """One folder as a list of folders."""
    fields = {name: [value] for name, value in outcome.fields.items()}
    return Outcome(outcome.kind, outcome.text, fields)
