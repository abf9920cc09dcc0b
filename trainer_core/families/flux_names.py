"""FLUX.1's layers by diffusers' names, and where ComfyUI's model (the original implementation's names) keeps them."""

from __future__ import annotations

import re

from ..errors import AdapterError
from .base import ComfyModule

# diffusers' names → ComfyUI's (the original implementation's), for double blocks, single blocks and the rest.
# The fused layers' order is q, k, v and, in single blocks, then the MLP's input, which is four times as wide.
_DOUBLE = {
    "attn.to_q": ComfyModule("img_attn.qkv", 0, 1, 3),
    "attn.to_k": ComfyModule("img_attn.qkv", 1, 2, 3),
    "attn.to_v": ComfyModule("img_attn.qkv", 2, 3, 3),
    "attn.add_q_proj": ComfyModule("txt_attn.qkv", 0, 1, 3),
    "attn.add_k_proj": ComfyModule("txt_attn.qkv", 1, 2, 3),
    "attn.add_v_proj": ComfyModule("txt_attn.qkv", 2, 3, 3),
    "attn.to_out.0": ComfyModule("img_attn.proj"),
    "attn.to_add_out": ComfyModule("txt_attn.proj"),
    "ff.net.0.proj": ComfyModule("img_mlp.0"),
    "ff.net.2": ComfyModule("img_mlp.2"),
    "ff_context.net.0.proj": ComfyModule("txt_mlp.0"),
    "ff_context.net.2": ComfyModule("txt_mlp.2"),
    "norm1.linear": ComfyModule("img_mod.lin"),
    "norm1_context.linear": ComfyModule("txt_mod.lin"),
}
_SINGLE = {
    "attn.to_q": ComfyModule("linear1", 0, 1, 7),
    "attn.to_k": ComfyModule("linear1", 1, 2, 7),
    "attn.to_v": ComfyModule("linear1", 2, 3, 7),
    "proj_mlp": ComfyModule("linear1", 3, 7, 7),
    "proj_out": ComfyModule("linear2"),
    "norm.linear": ComfyModule("modulation.lin"),
}
_REST = {
    "x_embedder": ComfyModule("img_in"),
    "context_embedder": ComfyModule("txt_in"),
    "time_text_embed.timestep_embedder.linear_1": ComfyModule("time_in.in_layer"),
    "time_text_embed.timestep_embedder.linear_2": ComfyModule("time_in.out_layer"),
    "time_text_embed.text_embedder.linear_1": ComfyModule("vector_in.in_layer"),
    "time_text_embed.text_embedder.linear_2": ComfyModule("vector_in.out_layer"),
    "time_text_embed.guidance_embedder.linear_1": ComfyModule("guidance_in.in_layer"),
    "time_text_embed.guidance_embedder.linear_2": ComfyModule("guidance_in.out_layer"),
    "norm_out.linear": ComfyModule("final_layer.adaLN_modulation.1", swap_halves=True),
    "proj_out": ComfyModule("final_layer.linear"),
}
_BLOCKS = (
    (re.compile(r"transformer_blocks\.(\d+)\.(.+)"), "double_blocks", _DOUBLE),
    (re.compile(r"single_transformer_blocks\.(\d+)\.(.+)"), "single_blocks", _SINGLE),
)


def flux_place(path: str) -> ComfyModule:
    """Where a linear layer of diffusers' FluxTransformer2DModel lies in ComfyUI's model.

    Raises:
        AdapterError: for a path that FLUX.1 has not.
    """
    for pattern, blocks, names in _BLOCKS:
        match = pattern.fullmatch(path)
        if match and match[2] in names:
            found = names[match[2]]
            return ComfyModule(f"{blocks}.{match[1]}.{found.path}", found.start, found.stop, found.total)
    if path in _REST:
        return _REST[path]
    raise AdapterError(f"FLUX.1 has no layer {path!r}")
