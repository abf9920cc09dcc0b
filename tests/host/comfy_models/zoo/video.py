"""Video models but Wan's: LTX (2 with sound), Hunyuan, Cosmos, Mochi, Kandinsky, CogVideoX, MiniMax, SeedVR2."""

from __future__ import annotations

from typing import Any

from .pictures import COSMOS2, padded
from .record import RESTORES, Draw, Given, Model, ones, seen

_HUNYUAN: dict[str, Any] = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 64,
    "axes_dim": [16, 56, 56],
    "meanflow": False,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "guidance_embed": True,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
_HUNYUAN15 = _HUNYUAN | {
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "guidance_embed": False,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 64,
    "meanflow_sum": True,
}
_COSMOS: dict[str, Any] = {
    "image_model": "cosmos",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "block_config": "FA-CA-MLP",
    "num_blocks": 2,
    "num_heads": 1,
    "mlp_ratio": 2.0,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "crossattn_emb_channels": 64,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
_LTX: dict[str, Any] = {
    "image_model": "ltxv",
    "in_channels": 128,
    "cross_attention_dim": 64,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": 64,
    "num_layers": 2,
}
LTX2 = _LTX | {
    "image_model": "ltxav",
    "audio_cross_attention_dim": 32,
    "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 2,
    "caption_channels": 48,
    "connector_attention_head_dim": 24,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
_COGVIDEO: dict[str, Any] = {
    "image_model": "cogvideox",
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "time_embed_dim": 64,
    "num_layers": 2,
    "in_channels": 16,
    "text_embed_dim": 64,
    "max_text_seq_length": 7,
    "use_rotary_positional_embeddings": True,
}

_CLIP = ((1, 16, 3, 8, 8),)
_CLIP15 = ((1, 32, 3, 4, 4),)
_LTX_CLIP = ((1, 128, 2, 4, 4),)
_LTX_SOUND = (1, 8, 5, 16)


def _pooled(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, 7, 64), "pooled_output": draw(1, 64)}


def _masked(draw: Draw) -> dict[str, Any]:
    mask = ones(1, 7).long()
    mask[:, 5:] = 0
    return {"cross_attn": draw(1, 7, 64), "attention_mask": mask}


def _glyphs(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, 7, 64), "conditioning_byt5small": draw(1, 3, 1472)}


def first_known(*shape: int) -> Any:
    """A mask of what is to be made: all frames but the first."""
    mask = ones(*shape)
    mask[:, :, :1] = 0
    return mask


def _first_frame(draw: Draw) -> dict[str, Any]:
    return {"concat_latent_image": draw(*_CLIP[0]), "concat_mask": first_known(1, 1, 3, 8, 8)}


def _video(name: str, kind: str, config: dict[str, Any], latents: Any, *given: Given, **more: Any) -> Model:
    return Model(name, kind, config, latents, *given, category="video", **more)


MODELS = [
    _video("ltxv", "LTXV", _LTX, _LTX_CLIP, _masked, lambda draw: {"frame_rate": 24}),
    _video(
        "ltxv_i2v",
        "LTXV",
        _LTX,
        _LTX_CLIP,
        _masked,
        lambda draw: {"frame_rate": 24, "denoise_mask": first_known(1, 1, 2, 4, 4)},
    ),
    _video(
        "ltx2",
        "LTXAV",
        LTX2,
        (*_LTX_CLIP, _LTX_SOUND),
        lambda draw: {"cross_attn": draw(1, 7, 48), "unprocessed_ltxav_embeds": True},
        lambda draw: {"frame_rate": 25},
        alone="between pictures and sound it uses the highest noise level of the batch",
    ),
    _video("hunyuan_video", "HunyuanVideo", _HUNYUAN, _CLIP, _pooled, lambda draw: {"guidance": 6.0}),
    _video("hunyuan_video_i2v", "HunyuanVideoI2V", _HUNYUAN | {"in_channels": 33}, _CLIP, _pooled, _first_frame),
    _video("skyreels_i2v", "HunyuanVideoSkyreelsI2V", _HUNYUAN | {"in_channels": 32}, _CLIP, _pooled, _first_frame),
    _video("hunyuan_video15", "HunyuanVideo15", _HUNYUAN15, _CLIP15, _glyphs),
    _video(
        "hunyuan_video15_i2v",
        "HunyuanVideo15",
        _HUNYUAN15,
        _CLIP15,
        _glyphs,
        lambda draw: {
            "concat_latent_image": draw(*_CLIP15[0]),
            "concat_mask": first_known(1, 1, 3, 4, 4),
            "clip_vision_output": seen(draw, 1, 5, 64),
        },
    ),
    _video(
        "hunyuan_video15_sr",
        "HunyuanVideo15_SR_Distilled",
        _HUNYUAN15 | {"in_channels": 98, "meanflow": True},
        _CLIP15,
        _glyphs,
        lambda draw: {"concat_latent_image": draw(1, 66, 3, 4, 4)},
        refused=RESTORES,
        alone="it uses the noise level of the first sample for all",
    ),
    _video("cosmos", "CosmosT2V", _COSMOS, _CLIP, padded, lambda draw: {"frame_rate": 24}),
    _video("cosmos_i2v", "CosmosI2V", _COSMOS | {"in_channels": 17}, _CLIP, padded, _first_frame),
    _video(
        "cosmos2_i2v",
        "CosmosI2VPredict2",
        COSMOS2 | {"in_channels": 17},
        _CLIP,
        padded,
        lambda draw: {"denoise_mask": first_known(1, 1, 3, 8, 8), "frame_rate": 24},
    ),
    _video(
        "mochi",
        "GenmoMochi",
        {
            "image_model": "mochi_preview",
            "depth": 2,
            "patch_size": 2,
            "num_heads": 2,
            "hidden_size_x": 64,
            "hidden_size_y": 32,
            "mlp_ratio_x": 192.0,  # its class insists on 12288
            "mlp_ratio_y": 2.0,
            "learn_sigma": False,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "attn_drop": 0.0,
            "posenc_preserve_area": True,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": 64,
            "t5_token_length": 7,
        },
        ((1, 12, 2, 8, 8),),
        _masked,
    ),
    _video(
        "kandinsky5",
        "Kandinsky5",
        {
            "image_model": "kandinsky5",
            "model_dim": 64,
            "ff_dim": 128,
            "in_text_dim": 64,
            "in_text_dim2": 64,
            "time_dim": 64,
            "visual_embed_dim": 132,
            "axes_dims": (16, 24, 24),
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
        },
        _CLIP,
        _pooled,
    ),
    _video("cogvideox", "CogVideoX_T2V", _COGVIDEO, _CLIP, padded),
    _video("cogvideox15", "CogVideoX_T2V", _COGVIDEO | {"patch_size_t": 2}, ((1, 16, 2, 8, 8),), padded),
    _video("cogvideox_i2v", "CogVideoX_I2V", _COGVIDEO | {"in_channels": 32}, _CLIP, padded, _first_frame),
    _video(
        "cogvideox_inpaint",
        "CogVideoX_Inpaint",
        _COGVIDEO | {"in_channels": 48},
        _CLIP,
        padded,
        lambda draw: {"concat_latent_image": draw(1, 32, 3, 8, 8)},
    ),
    _video(
        "minimax_h3",
        "MiniMaxH3",
        {
            "image_model": "minimax_h3",
            "hidden_size": 96,
            "num_layers": 2,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 1,
            "attention_head_dim": 128,
            "ffn_hidden_size": 128,
            "text_dim": 64,
            "time_embed_hidden_size": 64,
            "time_embed_dim": 32,
        },
        ((1, 24, 2, 4, 4), (1, 32, 2, 5)),
        padded,
        filled=("rope.inv_freq",),
        refused="its videos have 5, 22, 39, … frames, and clips are not cut to such lengths yet",
        alone="it refuses more",
    ),
    _video(
        "seedvr2",
        "SeedVR2",
        {
            "image_model": "seedvr2",
            "vid_dim": 128,
            "heads": 1,
            "num_layers": 2,
            "mm_layers": 1,
            "expand_ratio": 2,
            "norm_eps": 1e-5,
            "mlp_type": "swiglu",
            "vid_out_norm": True,
        },
        _CLIP,
        lambda draw: {"cross_attn": draw(1, 58, 5120)},
        lambda draw: {"condition": draw(1, 17, 3, 8, 8)},
        refused=RESTORES,
        alone="its code lays the samples behind one another",
        filled=("positive_conditioning", "negative_conditioning"),
    ),
]
