"""What a user reads of a failure: the sentence, with the names of widgets. Nothing here is of ComfyUI."""

from __future__ import annotations

import logging
import re

from .setting import PARTS
from .settings import BY_NODE

_OWN = {
    "dataset.folder": "folder of Load Dataset",
    "adapter.warm_start": "warm_start of Configure LoRA",
    "sample.prompts": "sample_prompts of Train LoRA",
    "sample.sampler": "sampler of Sample Settings",
    "sample.scheduler": "scheduler of Sample Settings",
    "model.family": "family of Base Model",
    "model.source": "source of Base Model",
    "model.recovery_adapter": "recovery_adapter of Base Model",
}
"""Fields whose widget is in no table."""
_TITLES = {"FoundryQuantizeBase": "Base Model", "FoundryCaptionWithTrigger": "Caption with Trigger"}
_SETTING = re.compile(rf"(?<![\w./\\])({'|'.join(PARTS.values())})(?:s\[\d+\])?\.(\w+)(?:\.(\w+))?")


class Failure(Exception):
    """An expected failure as ComfyUI's page shows it: `type: message`, and the type with its module's path."""

    __module__ = "builtins"
    __qualname__ = "LoRA Foundry"


class OneLine(logging.Filter):
    """Leaves the line in ComfyUI's log that says what failed, and takes the traceback of an expected failure away."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.msg if isinstance(record.msg, str) else ""
        return not (text.startswith("Traceback (") and f"\n{Failure.__qualname__}: " in text)


def title(node: str) -> str:
    """What a node is called, as `Train LoRA`, by its type."""
    return _TITLES.get(node) or " ".join(re.findall(r"LoRA|[A-Z][a-z]+", node.removeprefix("Foundry")))


_PLACES = {
    f"{PARTS[one.section]}.{one.field}": f"{one.options.get('display_name', one.widget)} of {title(node)}"
    for node, table in BY_NODE.items()
    for one in table
} | _OWN
"""Field, by part and name → its widget."""


def in_widgets(text: str, node: str = "") -> str:
    """A message of the trainer with the names of widgets in place of those in job.yaml.

    Args:
        node: the type of the node that shows it: of its own widgets only their names are said.
    """

    def named(found: re.Match[str]) -> str:
        place = _PLACES.get(f"{found[1]}.{found[2]}")
        if place is None and (found[1], found[2]) == ("model", "files") and found[3]:
            return _short(f"{found[3]} of Base Model", node)
        return found[0] if place is None else _short(place, node) + (f".{found[3]}" if found[3] else "")

    return _SETTING.sub(named, text)


def _short(place: str, node: str) -> str:
    return place.removesuffix(f" of {title(node)}") if node else place
