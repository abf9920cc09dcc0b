"""The names of LoRA files: what each key's ending means, and by which names tools know a layer.

There are four ways of naming: ComfyUI's own (`diffusion_model.`, the original implementation's layers), kohya's
(`lora_unet_`, `lora_te1_`, underscores for dots), diffusers' (`unet.`, `transformer.`, `text_encoder.`) and PEFT's
(`base_model.model.`). Files mix them with any of the endings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from ..errors import AdapterError

if TYPE_CHECKING:
    from ..families.names import Named, Place

_Value = TypeVar("_Value")

PARTS = "transformer."
"""Precedes diffusers' names of layers that ComfyUI has fused: it then changes the right rows of the fused layer."""

_HALVES = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A", ".lora_B"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
ENDINGS: dict[str, str] = {
    **{down: "down" for down, _ in _HALVES},
    **{up: "up" for _, up in _HALVES},
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    **{f".{name}": name for name in _LOKR + _LOHA},
}
"""End of a key → the part of a delta that it holds."""

OTHER_KINDS = {
    "OFT": re.compile(r"\.(oft|boft)_(blocks|diag)$|\.oft_R\b"),
    "full difference": re.compile(r"\.(diff(_b)?|set_weight|w_norm|b_norm)$"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "IA3": re.compile(r"\.on_input$"),
    "bias": re.compile(r"\.lora_(B|up)\.bias$"),
    "padded weight": re.compile(r"\.reshape_weight$"),
}
"""What LoRA files may hold besides, none of which an adapter here can represent."""

_TEXT = re.compile(r"lora_te\d?_|text_encoder(_\d)?\.|text_encoders\.|base_model\.model\.text_model\.")


def split_key(key: str) -> tuple[str, str] | None:
    """(name of the layer in the file, part of its delta); None for a key that is none of a LoRA, LoKr or LoHa."""
    ending = max((one for one in ENDINGS if key.endswith(one)), key=len, default=None)
    return None if ending is None else (key[: -len(ending)], ENDINGS[ending])


def split_text(layers: Mapping[str, _Value]) -> tuple[dict[str, _Value], dict[str, _Value]]:
    """Layers of a file, by their names in it, as (the denoiser's, the text encoders')."""
    text = {name: value for name, value in layers.items() if _TEXT.match(name)}
    return {name: value for name, value in layers.items() if name not in text}, text


def style(name: str) -> str:
    """Which way of naming a layer's name in a file is."""
    if name.startswith(("lora_unet_", "lora_te")):
        return "kohya"
    if name.startswith(("lycoris_", "lora_transformer_", "lora_prior_")):
        return name[: name.index("_", 5) if name.startswith("lora_") else 7]
    if "base_model.model." in name:
        return "PEFT"
    if name.startswith(("diffusion_model.", "text_encoders.")):
        return "ComfyUI"
    return "diffusers"


def names_of(path: str, base: Named, root: str, original: str | None) -> Iterator[tuple[str, Place]]:
    """All names of one layer in files, each with the rows of the named layer that ours is.

    Args:
        path: of our module.
        root: the text encoder that it is in; empty for the denoiser.
        original: its name in the original implementation, where `Base.original_modules` has one.
    """

    from ..families.names import Place

    whole = Place(path)
    if root:
        yield from ((name, whole) for name in _text_names(path, base, root))
        return
    places = [Place(original)] if original else []
    try:
        places.append(base.lora_place(path))
        yield base.spec.lora.key(places[-1].name), places[-1]
    except AdapterError:
        pass  # a layer that our adapters leave alone; those of others may not
    for place in places:
        yield f"diffusion_model.{place.name}", place
        yield "lora_unet_" + place.name.replace(".", "_"), place
    for prefix in ("", "transformer.", "unet.", "base_model.model.", "unet.base_model.model."):
        yield prefix + path, whole
        # diffusers' attention processors had the layers themselves, before they became PEFT's
        yield prefix + re.sub(r"\.to_out\.0$", ".to_out", path).replace(".to_", ".processor.to_"), whole
    for prefix in ("lora_unet_", "lora_transformer_", "lycoris_"):
        yield prefix + path.replace(".", "_"), whole


def _text_names(path: str, base: Named, root: str) -> Iterator[str]:
    if root in base.spec.lora.text_encoders:
        yield base.spec.lora.key(path, root)
    inner = path.removeprefix("text_model.")
    first = root == "text_encoder"
    for spelled in (inner, f"text_model.{inner}"):
        yield f"{root}.{spelled}"
        for prefix in ("lora_te_", "lora_te1_") if first else ("lora_te2_",):
            yield prefix + spelled.replace(".", "_")
        if first:
            yield f"base_model.model.{spelled}"
