"""What several tools have alike: rules of settings with the same meaning, and why there is no counterpart."""

from __future__ import annotations

from typing import Any

from .rules import Epochs, Outcome, Rule, Table, View, number, switch, to, whole, word

ATTENTION = "the fastest attention kernel is measured (memory.attention)"
BUCKETS = "the base's family says which buckets there are (bucket_divisor)"
CACHED = "encoded pictures and captions are always cached on disk"
COMPILED = "blocks are compiled one by one"
FLOAT32 = "what is trained is kept in float32"
FROM_BASE = "the base's own files say it"
GUIDANCE = "the guidance input is 1 while training"
LEVELS = "noise levels have no parameters beside train.timestep_type"
MERGED = "merge other LoRAs into the base first"
METRICS = "metrics are in the run's metrics.jsonl"
ONE_DROPOUT = "one dropout, of the LoRA's inputs"
PLANNED = "memory is planned (memory.plan)"
PRIVATE = "a secret stays where it is"
RESUMED = "a run goes on from its own checkpoints"
RUNS = "runs lie in one folder (--runs, or ComfyUI's output folder)"
UPLOADED = "nothing is uploaded here"
VARIED = "pictures are cropped and flipped, and not changed otherwise"
WRITTEN = "captions are used as they are written, but for the trigger: set `trigger`, or write it into the captions"


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


def dropout(value: Any, _: View) -> Outcome:
    """The rule of a share of captions that are dropped, trigger and all."""
    if not number(value):
        return Outcome("unused", "is off")
    fields = {".caption_dropout": number(value), ".dropped_caption": "blank"}
    return Outcome("converted", "a caption that is dropped leaves nothing, not the trigger", fields)


def added_text(placement: str, shuffles: str, glue: bool = False) -> Rule:
    """The rule of a text before (`start`) or after (`end`) each caption: it is the trigger here.

    Args:
        shuffles: the keys, with spaces between, of what shuffles tags.
        glue: the tool puts no space between the two.
    """

    def rule(value: Any, view: View) -> Outcome:
        text = word(value)
        if not text:
            return Outcome("unused", "is empty")
        if view["is_reg"] is True:
            return Outcome("dropped", "a regularization set shows its class without the trigger")
        told = ["is the trigger here, for captions that do not hold it yet"]
        if any(view[key] for key in shuffles.split()):
            text = text.strip(" ,")
            if "," in text or not text:
                return Outcome("dropped", "is several tags, which would be torn apart as tags are shuffled: " + WRITTEN)
            told.append("in its place when tags are shuffled, without a comma")
        if glue and not (value[-1:] if placement == "start" else value[:1]).isspace():
            told.append("with a space between")
        return Outcome("converted", "; ".join(told), {".trigger": text, ".trigger_placement": placement})

    return rule


def float8(name: str) -> Rule:
    """The rule of a switch that holds frozen weights in float8."""

    def rule(value: Any, _: View) -> Outcome:
        if not switch(value):
            return Outcome("unused", "is off")
        return Outcome("converted", "float8 with a scale for each row", {name: "float8"})

    return rule


def below(section: str, table: Table) -> Table:
    """A table whose settings stand in a section."""
    return {f"{section}.{key}": rule for key, rule in table.items()}


def extension(value: Any) -> str:
    """The extension of caption files.

    Raises:
        ValueError: if it is no text.
    """
    return word(value).lstrip(".")


def crop(value: Any) -> str:
    """Which part of a picture is trained on, by a switch.

    Raises:
        ValueError: if it is none.
    """
    return "random" if switch(value) else "center"


TRAIN: dict[str, Rule] = {
    "gradient_checkpointing": to("train.gradient_checkpointing", switch),
    "max_grad_norm": to("train.max_grad_norm", number),
}
"""Of a training."""
UNET: dict[str, Rule] = {
    "min_snr_gamma": to("train.min_snr_gamma", number),
    "noise_offset": to("train.noise_offset", number),
}
"""Of a training that may be one of a UNet."""
DATA: dict[str, Rule] = {
    "num_repeats": to(".weight", number),
    "keep_tokens": to(".keep_tags", whole),
    "random_crop": to(".crop", crop),
    "alpha_mask": to(".alpha_mask", switch),
}
"""Of data sets."""
