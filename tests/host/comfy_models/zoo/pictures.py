"""Transformers that make pictures from text."""

from __future__ import annotations

from typing import Any

from .record import Draw, Model, ones

FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
FLUX2 = FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "qkv_bias": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "yak_mlp": False,
    "txt_norm": False,
}
CHROMA = {key: value for key, value in FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "in_dim": 64,
    "out_dim": 128,
    "hidden_dim": 64,
    "n_layers": 2,
}
_RADIANCE = CHROMA | {
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 2,
    "nerf_max_freqs": 8,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
_NEXT_DIT: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "cap_feat_dim": 64,
    "qk_norm": True,
    "multiple_of": 64,
}
LUMINA = _NEXT_DIT | {
    "dim": 192,
    "n_heads": 2,
    "n_kv_heads": 1,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "ffn_dim_multiplier": 2.0,
}
Z_IMAGE = _NEXT_DIT | {
    "dim": 256,  # its time embedding has 256 channels, whatever the width
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_PIXELS = {
    "patch_size": 16,
    "in_channels": 3,
    "image_model": "zimage_pixel",
    "decoder_in_channels": 768,
    "decoder_hidden_size": 64,
    "decoder_num_res_blocks": 2,
    "decoder_max_freqs": 8,
}
QWEN: dict[str, Any] = {
    "image_model": "qwen_image",
    "num_layers": 2,
    "in_channels": 64,
    "out_channels": 16,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": 64,
}
HIDREAM: dict[str, Any] = {
    "image_model": "hidream",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "caption_channels": [64, 64],
    "text_emb_dim": 64,
    "num_routed_experts": 2,
    "num_activated_experts": 2,
    "axes_dims_rope": [64, 32, 32],
    "max_resolution": [128, 128],
    "llama_layers": [0, 1],
}
COSMOS2: dict[str, Any] = {
    "image_model": "cosmos_predict2",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "num_blocks": 2,
    "num_heads": 1,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": 64,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}

FLAT = ((1, 16, 16, 16),)
DEEP = ((1, 128, 8, 8),)
STILL = ((1, 16, 1, 16, 16),)
"""Latents of pictures of models whose VAE is a video's."""
PIXELS = ((1, 3, 32, 32),)


def text(draw: Draw) -> dict[str, Any]:
    """As long as the prompt."""
    return {"cross_attn": draw(1, draw.tokens, 64)}


def padded(draw: Draw) -> dict[str, Any]:
    """As long as every other prompt."""
    return {"cross_attn": draw(1, 7, 64)}


def pooled(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, 7, 64), "pooled_output": draw(1, 64)}


def masked(draw: Draw) -> dict[str, Any]:
    """With two tokens of padding."""
    mask = ones(1, draw.tokens).long()
    mask[:, -2:] = 0
    return {"cross_attn": draw(1, draw.tokens, 64), "attention_mask": mask}


def unmasked(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, draw.tokens, 64), "attention_mask": ones(1, draw.tokens).long()}


def llama(draw: Draw) -> dict[str, Any]:
    return pooled(draw) | {"conditioning_llama3": draw(1, 2, 7, 64)}


def guided(draw: Draw) -> dict[str, Any]:
    return {"guidance": 1.0}


def _sd3(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, 7, 64), "pooled_output": draw(1, 48)}


MODELS = [
    Model(
        "sd3",
        "SD3",
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "input_size": None,
            "depth": 2,
            "adm_in_channels": 48,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 64, "out_features": 128},
            },
            "num_patches": 1024,
            "pos_embed_max_size": 32,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        },
        FLAT,
        _sd3,
        filled=("pos_embed",),
    ),
    Model(
        "auraflow",
        "AuraFlow",
        {
            "max_seq": 1024,
            "cond_seq_dim": 64,
            "dim": 64,
            "n_heads": 1,
            "n_double_layers": 1,
            "n_layers": 2,
            "global_conddim": 64,
        },
        ((1, 4, 16, 16),),
        padded,
    ),
    Model("flux1", "Flux", FLUX, FLAT, pooled, guided),
    Model("flux1_schnell", "FluxSchnell", FLUX | {"guidance_embed": False}, FLAT, pooled),
    Model(
        "longcat",
        "LongCatImage",
        FLUX | {"guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
        FLAT,
        text,
    ),
    Model("flux2", "Flux2", FLUX2, DEEP, text, guided),
    Model("chroma", "Chroma", CHROMA, FLAT, text),
    Model("chroma_radiance", "ChromaRadiance", _RADIANCE, PIXELS, text),
    Model("lumina2", "Lumina2", LUMINA, FLAT, masked),
    Model("z_image", "ZImage", Z_IMAGE, FLAT, unmasked),
    Model("z_image_pixel", "ZImagePixelSpace", Z_IMAGE | _PIXELS, PIXELS, unmasked),
    Model("qwen_image", "QwenImage", QWEN, STILL, text),
    Model("hidream", "HiDream", HIDREAM, FLAT, llama),
    Model("cosmos2_t2i", "CosmosT2IPredict2", COSMOS2, STILL, padded),
]
