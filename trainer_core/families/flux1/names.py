"""FLUX.1's layers by diffusers' names, and where ComfyUI's model (the original implementation's names) keeps them."""

from __future__ import annotations

import re

from ...errors import AdapterError
from ..names import Naming, Place

# diffusers' names → ComfyUI's (the original implementation's), for double blocks, single blocks and the rest.
# The fused layers' order is q, k, v and, in single blocks, then the MLP's input, which is four times as wide.
_DOUBLE = {
    "attn.to_q": Place("img_attn.qkv", 0, 1, 3),
    "attn.to_k": Place("img_attn.qkv", 1, 2, 3),
    "attn.to_v": Place("img_attn.qkv", 2, 3, 3),
    "attn.add_q_proj": Place("txt_attn.qkv", 0, 1, 3),
    "attn.add_k_proj": Place("txt_attn.qkv", 1, 2, 3),
    "attn.add_v_proj": Place("txt_attn.qkv", 2, 3, 3),
    "attn.to_out.0": Place("img_attn.proj"),
    "attn.to_add_out": Place("txt_attn.proj"),
    "ff.net.0.proj": Place("img_mlp.0"),
    "ff.net.2": Place("img_mlp.2"),
    "ff_context.net.0.proj": Place("txt_mlp.0"),
    "ff_context.net.2": Place("txt_mlp.2"),
    "norm1.linear": Place("img_mod.lin"),
    "norm1_context.linear": Place("txt_mod.lin"),
}
_SINGLE = {
    "attn.to_q": Place("linear1", 0, 1, 7),
    "attn.to_k": Place("linear1", 1, 2, 7),
    "attn.to_v": Place("linear1", 2, 3, 7),
    "proj_mlp": Place("linear1", 3, 7, 7),
    "proj_out": Place("linear2"),
    "norm.linear": Place("modulation.lin"),
}
_REST = {
    "x_embedder": Place("img_in"),
    "context_embedder": Place("txt_in"),
    "time_text_embed.timestep_embedder.linear_1": Place("time_in.in_layer"),
    "time_text_embed.timestep_embedder.linear_2": Place("time_in.out_layer"),
    "time_text_embed.text_embedder.linear_1": Place("vector_in.in_layer"),
    "time_text_embed.text_embedder.linear_2": Place("vector_in.out_layer"),
    "time_text_embed.guidance_embedder.linear_1": Place("guidance_in.in_layer"),
    "time_text_embed.guidance_embedder.linear_2": Place("guidance_in.out_layer"),
    "norm_out.linear": Place("final_layer.adaLN_modulation.1", swap_halves=True),
    "proj_out": Place("final_layer.linear"),
}
_BLOCKS = (
    (re.compile(r"transformer_blocks\.(\d+)\.(.+)"), "double_blocks", _DOUBLE),
    (re.compile(r"single_transformer_blocks\.(\d+)\.(.+)"), "single_blocks", _SINGLE),
)


def flux_place(path: str) -> Place:
    """Where a linear layer of diffusers' FluxTransformer2DModel lies in ComfyUI's model.

    Raises:
        AdapterError: for a path that FLUX.1 has not.
    """
    for pattern, blocks, names in _BLOCKS:
        match = pattern.fullmatch(path)
        if match and match[2] in names:
            found = names[match[2]]
            return Place(f"{blocks}.{match[1]}.{found.name}", found.start, found.stop, found.total)
    if path in _REST:
        return _REST[path]
    raise AdapterError(f"FLUX.1 has no layer {path!r}")


_NORM = re.compile(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])\.weight")
_NORMS = {"q": "query_norm", "k": "key_norm"}


def original_names(leaf: str) -> Naming:
    """diffusers' name of a weight → the original one.

    Args:
        leaf: what the file calls a norm's factor: "scale", or "weight" as some newer files do.
    """

    def naming(name: str) -> Place:
        if match := _NORM.fullmatch(name):
            single, block, added, which = match.groups()
            if single:
                return Place(f"single_blocks.{block}.norm.{_NORMS[which]}.{leaf}")
            side = "txt_attn" if added else "img_attn"
            return Place(f"double_blocks.{block}.{side}.norm.{_NORMS[which]}.{leaf}")
        module, _, last = name.rpartition(".")
        try:
            place = flux_place(module)
        except AdapterError:
            return Place(name)
        return Place(f"{place.name}.{last}", place.start, place.stop, place.total, place.swap_halves)

    return naming
