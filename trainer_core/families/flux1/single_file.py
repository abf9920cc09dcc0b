"""FLUX.1 in single files; its transformer has its original names there (which ComfyUI keeps) or diffusers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..names import Naming, Place, Shapes
from ..parts.clip import describe_clip
from ..parts.kl_names import describe_vae
from ..parts.t5 import describe_t5
from ..sources.layout import IN_CHECKPOINTS, Layout, PartLayout
from .names import original_names


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
        naming = Place
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


def _schedule(config: dict[str, Any], shapes: Shapes, _metadata: Mapping[str, str]) -> dict[str, Any]:
    """FLUX.1-dev's schedule, or schnell's, which has no guidance input and was distilled without a shift."""
    if any("guidance_in." in name or "guidance_embedder." in name for name in shapes):
        return config
    return {**config, "shift": 1.0, "use_dynamic_shifting": False}


FLUX1 = Layout(
    name="flux1",
    title="FLUX.1",
    configs=Path(__file__).parent / "configs",
    parts={
        "transformer": PartLayout("FLUX.1 transformer", IN_CHECKPOINTS, describe_flux),
        "vae": PartLayout("VAE", ("vae.", "first_stage_model.", ""), describe_vae),
        "text_encoder": PartLayout(
            "CLIP-L text encoder", ("text_encoders.clip_l.transformer.", "clip_l.transformer.", ""), describe_clip
        ),
        "text_encoder_2": PartLayout(
            "T5-XXL text encoder", ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", ""), describe_t5
        ),
    },
    schedule=_schedule,
)
