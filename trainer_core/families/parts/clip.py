"""CLIP's text encoders: in transformers' names, or in OpenCLIP's (the second one of SDXL checkpoints)."""

from __future__ import annotations

import re
from typing import Any

from ..names import Naming, Place, Shapes

_KNOWN = {768, 1024, 1280}
"""Sizes of the published ones: L, H and G."""
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_REST = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def describe_clip(config: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Any], Naming] | None:
    """Configuration and naming of a CLIP text encoder from its shapes; None if these are none."""
    openclip = "token_embedding.weight" in shapes
    # old SD 1.5 checkpoints, and transformers' own model since version 5, lack the prefix
    head = "text_model." if "text_model.embeddings.token_embedding.weight" in shapes else ""
    block = "transformer.resblocks.{}.mlp.c_fc" if openclip else head + "encoder.layers.{}.mlp.fc1"
    tokens = shapes.get("token_embedding.weight" if openclip else f"{head}embeddings.token_embedding.weight")
    places = shapes.get("positional_embedding" if openclip else f"{head}embeddings.position_embedding.weight")
    first = shapes.get(f"{block.format(0)}.weight")
    if tokens is None or places is None or first is None:
        return None
    if tokens[1] in _KNOWN and tokens[1] != config["hidden_size"]:
        return None  # another CLIP than the family's
    layers = 0
    while f"{block.format(layers)}.weight" in shapes:
        layers += 1
    made = {
        **config,
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "max_position_embeddings": places[0],
        "intermediate_size": first[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, tokens[1] // 64),
    }
    projection = _projection(shapes)
    if projection is not None:
        # OpenCLIP keeps the matrix to multiply with from the right, so its second size is the output's
        made["projection_dim"] = shapes[projection][int(projection == "text_projection")]
    return made, openclip_names(shapes) if openclip else _with_head(head, projection)


def _projection(shapes: Shapes) -> str | None:
    names = ("text_projection.weight", "text_projection", "text_model.text_projection.weight")
    return next((name for name in names if name in shapes), None)


def _with_head(head: str, projection: str | None) -> Naming:
    def naming(name: str) -> Place:
        if name == "text_projection.weight":
            return Place(projection or name, transposed=projection == "text_projection")
        return Place(head + name.removeprefix("text_model."))

    return naming


def openclip_names(shapes: Shapes) -> Naming:
    """transformers' name of a weight → OpenCLIP's, which fuses q, k and v."""
    projection = _projection(shapes)

    def naming(name: str) -> Place:
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            return Place(projection or name, transposed=projection == "text_projection")
        if name in _REST:
            return Place(_REST[name])
        match = _LAYER.fullmatch(name)
        if match is None:
            return Place(name)
        layer, inner, leaf = match.groups()
        block = f"transformer.resblocks.{layer}"
        if inner in _FUSED:
            k = _FUSED.index(inner)
            return Place(f"{block}.attn.in_proj_{leaf}", k, k + 1, 3)
        return Place(f"{block}.{_INNER.get(inner, inner)}.{leaf}")

    return naming
