"""Bases by the names that other tools have for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .rules import Outcome, Rule, View, number, shown, whole, word

MOST_RANK = 1024
"""That a job takes."""
OURS = {
    "flux": "flux1",
    "flux1": "flux1",
    "flux_kontext": "flux1_kontext",
    "sd": "sd15",
    "sd1": "sd15",
    "sd15": "sd15",
    "sdxl": "sdxl",
}
"""Foreign name → family."""
UNETS = frozenset({"sd15", "sdxl"})
"""Families with convolutions and text encoders that a LoRA can adapt."""
_THROUGH_COMFYUI = (
    "is trained through ComfyUI, in its graph or with `--comfyui DIR`: model.source and model.files must name the "
    "files that ComfyUI loads"
)
_QUANTIZATIONS = {"qfloat8": "float8", "qint8": "int8", "qint4": "4bit", "qint2": "2bit", "uint8": "int8"}
_OTHERS = {"float8": "float8", "float8_e4m3fn": "float8", "int8": "int8", "nf4": "nf4"}
_QUANTIZATIONS |= _OTHERS | {"convrot8": "int8", "convrotint8": "int8", "convrot4": "4bit", "nvfp4": "4bit"}
_QUANTIZATIONS |= {"uint6": "6bit", "convrotint6": "6bit", "uint5": "5bit", "convrotint5": "5bit"}
_QUANTIZATIONS |= {"uint4": "uint4", "convrotint4": "4bit", "uint3": "uint3", "convrotint3": "3bit"}
_QUANTIZATIONS |= {"uint2": "2bit", "convrotint2": "2bit"}

DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "float16", "half"), "float16"),
    **dict.fromkeys(("fp32", "float32", "float", "no"), "float32"),
}
"""Precisions by foreign names."""


def family(value: Any, _: View) -> Outcome:
    """The rule of a base's kind."""
    kind = word(value).lower().partition(":")[0]
    if ours := OURS.get(kind):
        return Outcome("taken", f"{shown(value)} is family {ours} here", {"model.family": ours})
    return Outcome("converted", f"{shown(value)} {_THROUGH_COMFYUI}", {"model.family": "auto"})


def quantization(name: str) -> Rule:
    """The rule of how frozen weights are held."""

    def rule(value: Any, _: View) -> Outcome:
        held = word(value).lower()
        if not held:
            return Outcome("unused", "is empty")
        if held not in _QUANTIZATIONS:
            return Outcome("dropped", f"{shown(value)} is not there; {name} can be float8, int8, 6bit, 4bit and others")
        made = _QUANTIZATIONS[held]
        if made == held:
            return Outcome("taken", fields={name: made})
        return Outcome("converted", f"{shown(value)} is {made} here, the nearest there is", {name: made})

    return rule


def rank(value: Any, _: View) -> Outcome:
    """The rule of a rank; very large ones mean that nothing is decomposed, as with a LoKr."""
    made = number(value)
    if made > MOST_RANK:
        return Outcome("converted", f"{shown(value)} is {MOST_RANK} here, the largest", {"adapter.rank": MOST_RANK})
    return Outcome("taken", fields={"adapter.rank": whole(value)})


def in_hub(source: str) -> bool:
    """Whether a source looks like a repository of Hugging Face."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def path(name: str) -> Rule:
    """The rule of a folder or file, which stays as it is written."""

    def rule(value: Any, _: View) -> Outcome:
        made = word(value)
        if not made:
            return Outcome("unused", "is empty")
        if name == "model.source" and in_hub(made):
            return Outcome("taken", "a folder of this name, or a repository of Hugging Face", {name: made})
        if re.match(r"/|\\|~|[A-Za-z]:", made):
            return Outcome("taken", fields={name: made})
        return Outcome("converted", f"{shown(made)} is looked for in the folder of the job.yaml", {name: made})

    return rule


def files(names: Mapping[str, str]) -> dict[str, Rule]:
    """Rules of the parts of a base in files of their own, by foreign key and our part."""
    return {key: path(f"model.files.{part}") for key, part in names.items()}


def through_comfyui(what: str, fields: Mapping[str, Any]) -> Outcome:
    """A base that is none of our families."""
    return Outcome("converted", f"{what} {_THROUGH_COMFYUI}", fields)
