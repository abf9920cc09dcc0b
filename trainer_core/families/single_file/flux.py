"""FLUX.1's transformer in its original names (Black Forest Labs', which ComfyUI keeps) or in diffusers'."""

from __future__ import annotations

import re
from typing import Any

from ...errors import AdapterError
from .layout import Naming, Origin, Shapes

_NORM = re.compile(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])\.weight")
_NORMS = {"q": "query_norm", "k": "key_norm"}


def describe_flux(config: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Any], Naming] | None:
    """Configuration and naming of a FLUX.1 transformer from its shapes; None if these are none."""
    leaf = next((leaf for leaf in ("scale", "weight") if _key_norm(leaf) in shapes), None)
    if leaf is not None and "img_in.weight" in shapes and "vector_in.in_layer.weight" in shapes:
        head = shapes[_key_norm(leaf)][0]
        names = ("img_in", "txt_in", "vector_in.in_layer", "final_layer.linear", "guidance_in.in_layer")
        blocks, naming = ("double_blocks.{}.img_mod.lin", "single_blocks.{}.modulation.lin"), original_names(leaf)
    elif "transformer_blocks.0.attn.norm_added_k.weight" in shapes and "context_embedder.weight" in shapes:
        head = shapes["transformer_blocks.0.attn.norm_added_k.weight"][0]
        embedder = "time_text_embed.{}_embedder.linear_1"
        names = ("x_embedder", "context_embedder", embedder.format("text"), "proj_out", embedder.format("guidance"))
        blocks = ("transformer_blocks.{}.norm1.linear", "single_transformer_blocks.{}.norm.linear")
        naming = Origin
    else:
        return None
    image, text, pooled, out, guidance = (shapes.get(f"{name}.weight") for name in names)
    if image is None or text is None or pooled is None or out is None:
        return None
    made = {
        **config,
        "in_channels": image[1],
        "out_channels": None if out[0] == image[1] else out[0],
        "num_attention_heads": image[0] // head,
        "attention_head_dim": head,
        "axes_dims_rope": [head // 8, 7 * head // 16, 7 * head // 16],
        "joint_attention_dim": text[1],
        "pooled_projection_dim": pooled[1],
        "guidance_embeds": guidance is not None,
        "num_layers": _count(shapes, blocks[0]),
        "num_single_layers": _count(shapes, blocks[1]),
    }
    return made, naming


def _key_norm(leaf: str) -> str:
    return f"double_blocks.0.img_attn.norm.key_norm.{leaf}"


def _count(shapes: Shapes, module: str) -> int:
    n = 0
    while f"{module.format(n)}.weight" in shapes:
        n += 1
    return n


def original_names(leaf: str) -> Naming:
    """diffusers' name of a weight → the original one.

    Args:
        leaf: what the file calls a norm's factor: "scale", or "weight" as some newer files do.
    """
    from ..flux_names import flux_place

    def naming(name: str) -> Origin:
        if match := _NORM.fullmatch(name):
            single, block, added, which = match.groups()
            if single:
                return Origin(f"single_blocks.{block}.norm.{_NORMS[which]}.{leaf}")
            side = "txt_attn" if added else "img_attn"
            return Origin(f"double_blocks.{block}.{side}.norm.{_NORMS[which]}.{leaf}")
        module, _, last = name.rpartition(".")
        try:
            place = flux_place(module)
        except AdapterError:
            return Origin(name)
        return Origin(f"{place.path}.{last}", place.start, place.stop, place.total, place.swap_halves)

    return naming
