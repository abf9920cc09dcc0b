"""Networks of sd-scripts and LyCORIS: the module's name, and arguments such as `conv_dim=8`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..rules import Outcome, View, listed, number, shown, whole, word

_ALGORITHMS = {name: name for name in ("lora", "loha", "lokr")} | {"locon": "lora"}
_PRESETS = {
    "attn-only": "attention",
    "attn-mlp": "attention_mlp",
    "unet-transformer-only": "attention_mlp",
    "full": "all",
}
WHOLE_LAYERS = ("lora_flux", "lora_sd3", "lora_lumina", "lora_anima", "lora_hunyuan_image")
"""Modules that adapt every linear layer of the blocks."""
_NUMBERS: dict[str, tuple[str, Callable[[Any], float]]] = {
    "conv_dim": ("adapter.conv_rank", whole),
    "conv_alpha": ("adapter.conv_alpha", number),
    "factor": ("adapter.factor", whole),
    "dropout": ("adapter.dropout", number),
}
"""Argument → our setting."""


def module(value: Any, _: View) -> Outcome:
    """The rule of the network's module."""
    name = word(value)
    last = name.rpartition(".")[2]
    if name.startswith("lycoris"):
        return Outcome("taken", "goes with network_args")
    if last in ("lora", "lora_fa"):
        return Outcome("taken", fields={"adapter.type": "lora"})
    if last in WHOLE_LAYERS:
        fields = {"adapter.type": "lora", "adapter.targets": "all"}
        return Outcome("taken", "every linear layer of the blocks", fields)
    if last in _ALGORITHMS:
        return Outcome("taken", f"{shown(name)} is {last} here", {"adapter.type": _ALGORITHMS[last]})
    return Outcome("converted", f"{shown(name)} is not there: a LoRA in its place", {"adapter.type": "lora"})


def network_arguments(value: Any, view: View) -> Outcome:
    """The rule of the module's arguments."""
    given = arguments(value)
    lycoris = str(view["network_module"] or "").startswith("lycoris")
    fields, left = _of_lycoris(given) if lycoris else ({}, [])
    for name, one in given.items():
        if name in _NUMBERS:
            field, convert = _NUMBERS[name]
            fields[field] = convert(one)
        elif one not in (False, None, "", 0):
            left.append(name)
    if "adapter.conv_rank" in fields:
        fields.setdefault("adapter.conv_alpha", 1.0)
    if left:
        return Outcome("converted" if fields else "dropped", f"not taken over: {', '.join(map(shown, left))}", fields)
    return Outcome("taken" if fields else "unused", fields=fields)


def _of_lycoris(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What LyCORIS' own arguments, which are taken out, make of the job; and what is left of them."""
    left = []
    algorithm = str(given.pop("algo", "lora")).lower()
    kind = _ALGORITHMS.get(algorithm)
    if kind is None:
        left.append(f"algo={algorithm}, a LoRA is in its place")
    if given.pop("dora_wd", False) is True:
        if kind == "lora":
            kind = "dora"
        else:
            left.append("dora_wd")
    preset = str(given.pop("preset", "full"))
    if preset not in _PRESETS:
        left.append("preset")
    return {"adapter.type": kind or "lora", "adapter.targets": _PRESETS.get(preset, "attention_mlp")}, left


def arguments(value: Any) -> dict[str, Any]:
    """`["conv_dim=8", "betas=0.9,0.99"]` as names and values; a section stays one.

    Raises:
        ValueError: for an item without `=`.
    """
    if isinstance(value, Mapping):
        return dict(value)
    given = {}
    for item in listed(value):
        name, equals, text = word(item).partition("=")
        if not equals:
            raise ValueError(f"must be NAME=VALUE, and is {shown(item)}")
        given[name.strip()] = _value(text.strip())
    return given


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    bare = text.strip("()[]\"' ")
    try:
        numbers = [number(part) for part in bare.split(",") if part.strip()]
    except ValueError:
        return bare
    if not numbers:
        return bare
    plain = [int(one) if one == int(one) and "." not in bare and "e" not in bare.lower() else one for one in numbers]
    return plain if len(plain) > 1 or "," in bare else plain[0]
