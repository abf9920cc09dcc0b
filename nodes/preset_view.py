"""What Preset gives to Train LoRA, and what it shows. Nothing here is of ComfyUI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from ..trainer_core.api import Change
from .setting import PARTS, Values
from .settings import BY_NODE, TRAINING_OPTIONS

LINKED = {
    ("dataset", "resolutions"),
    ("train", "steps"),
    ("train", "learning_rate"),
    ("train", "batch_size"),
    ("train", "gradient_accumulation"),
}
"""What has an output of its own, for the widget of the same name."""
BY_HAND = {
    ("save", "every"): "save_every of Train LoRA",
    ("sample", "every"): "sample_every of Train LoRA",
    ("dataset", "flip_x"): "flip_x of Load Dataset",
    ("dataset", "caption_dropout"): "caption_dropout of Caption with Trigger",
}
"""What no output carries: where it is not the widget's own default, the node asks the user to set it."""


class Filled(TypedDict):
    """A value for a widget."""

    node: str
    """The node's type, as `FoundryTrainLoRA`."""
    widget: str
    value: Any
    """As the widget shows it."""
    why: str


def filled(changes: Iterable[Change], others: Iterable[Change]) -> list[Filled]:
    """A preset as values of widgets.

    Args:
        others: what other presets change. Where this one says nothing, the value goes back to the widget's own.
    """
    places = {(PARTS[one.section], one.field): (node, one) for node, table in BY_NODE.items() for one in table}
    found: dict[tuple[str, str], Filled] = {}
    for change in changes:
        node, one = places[change.part, change.field]
        value = one.shown(change.value)
        found[change.part, change.field] = Filled(node=node, widget=one.widget, value=value, why=change.reason)
    for change in others:
        node, one = places[change.part, change.field]
        own = Filled(node=node, widget=one.widget, value=one.default, why="the usual value")
        found.setdefault((change.part, change.field), own)
    return list(found.values())


def training_options(train: Mapping[str, Any]) -> Values:
    """What Training Options would give; only what the preset changes, so that all else stays at its default."""
    offered = {one.field for one in TRAINING_OPTIONS if PARTS[one.section] == "train"}
    return {"train": {field: value for field, value in train.items() if field in offered}}


def told(changes: Iterable[Change], warning: str | None) -> str:
    """The preset in words: each setting and its reason."""
    carried: list[str] = []
    own: list[str] = []
    defaults = {(PARTS[one.section], one.field): one.default for table in BY_NODE.values() for one in table}
    for change in changes:
        if (change.part, change.field) in BY_HAND and defaults[change.part, change.field] == change.value:
            continue
        value = ", ".join(map(str, change.value)) if isinstance(change.value, tuple) else change.value
        place = BY_HAND.get((change.part, change.field))
        line = f"• {place or change.field} = {value}: {change.reason}"
        (own if place else carried).append(line)
    lines = [*([warning] if warning else []), *carried]
    return "\n".join([*lines, "Set these yourself:", *own] if own else lines)
