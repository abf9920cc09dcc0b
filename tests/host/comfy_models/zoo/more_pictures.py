"""More transformers that make pictures from text: one of each further class."""

from __future__ import annotations

from typing import Any

from .pictures import COSMOS2, DEEP, FLAT, PIXELS, STILL, masked, text, unmasked
from .record import NO_GRADIENT, RESTORES, Draw, Model, ones

_PIXART: dict[str, Any] = {
    "image_model": "pixart_alpha",
    "num_heads": 2,
    "patch_size": 2,
    "hidden_size": 96,
    "in_channels": 4,
    "depth": 2,
    "mlp_ratio": 2.0,
    "caption_channels": 64,
    "model_max_length": 120,
    "input_size": 64,
    "pe_interpolation": 1,
    "micro_condition": True,
}
_PIXART_SIZE = ((1, 4, 34, 34),)
"""It divides by zero below 33 latents."""
_HYDIT: dict[str, Any] = {
    "image_model": "hydit",
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "text_states_dim": 64,
    "text_states_dim_t5": 64,
    "text_len": 7,
    "text_len_t5": 9,
}
_PIXELDIT: dict[str, Any] = {
    "image_model": "pixeldit_t2i",
    "num_groups": 2,
    "hidden_size": 64,
    "pixel_hidden_size": 8,
    "pixel_attn_hidden_size": 32,
    "pixel_num_groups": 2,
    "patch_depth": 2,
    "pixel_depth": 2,
    "patch_size": 16,
    "txt_embed_dim": 64,
}
_HUNYUAN_IMAGE: dict[str, Any] = {
    "image_model": "hunyuan_video",
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "vec_in_dim": None,
    "axes_dim": [64, 64],
    "meanflow": False,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "byt5": True,
    "guidance_embed": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
_KANDINSKY: dict[str, Any] = {
    "image_model": "kandinsky5",
    "model_dim": 128,
    "ff_dim": 256,
    "in_text_dim": 64,
    "in_text_dim2": 64,
    "time_dim": 64,
    "visual_embed_dim": 64,
    "axes_dims": (32, 48, 48),
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "rope_scale_factor": (1.0, 1.0, 1.0),
}
BOOGU: dict[str, Any] = {
    "image_model": "boogu",
    "hidden_size": 96,
    "num_layers": 2,
    "num_double_stream_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 64,
    "axes_dim_rope": (16, 16, 16),
    "instruction_feat_dim": 64,
}
MAGE: dict[str, Any] = {
    "image_model": "mage_flow",
    "in_channels": 128,
    "num_layers": 2,
    "num_attention_heads": 1,
    "joint_attention_dim": 64,
}
KREA: dict[str, Any] = {
    "image_model": "krea2",
    "features": 128,
    "heads": 2,
    "kvheads": 1,
    "multiplier": 2,
    "layers": 2,
    "txtdim": 32,
    "txtlayers": 2,
    "txtheads": 1,
    "txtkvheads": 1,
}
JOY: dict[str, Any] = {
    "image_model": "joyimage",
    "in_channels": 16,
    "hidden_size": 128,
    "patch_size": [1, 2, 2],
    "num_layers": 2,
    "num_attention_heads": 1,
    "text_dim": 64,
    "mlp_width_ratio": 2.0,
}
O1: dict[str, Any] = {
    "image_model": "hidream_o1",
    "text_config_overrides": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    },
    "vision_config_overrides": {
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 128,
        "depth": 1,
        "deepstack_visual_indexes": (),
    },
}
_TIME_TOKEN = 151673
"""What HiDream O1 replaces by the noise level; its tokenizer ends each prompt with it."""


def _hydit(draw: Draw) -> dict[str, Any]:
    return {
        "cross_attn": draw(1, 7, 64),
        "attention_mask": ones(1, 7),
        "conditioning_mt5xl": draw(1, 9, 64),
        "attention_mask_mt5xl": ones(1, 9),
    }


def _glyphs(draw: Draw) -> dict[str, Any]:
    """Text within quotation marks comes from a second encoder."""
    return {"cross_attn": draw(1, draw.tokens, 64), "conditioning_byt5small": draw(1, 3, 1472)}


def o1(draw: Draw) -> dict[str, Any]:
    import torch

    ids = torch.cat([draw.ids(draw.tokens - 1, below=1000), torch.tensor([_TIME_TOKEN])])
    return {"cross_attn": draw(1, draw.tokens, 64), "text_input_ids": ids}


def _anima(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, 7, 1024), "t5xxl_ids": draw.ids(9, below=32128), "t5xxl_weights": ones(9)}


def _small_adapter(model: Any) -> None:
    """Its text adapter has fixed sizes, a hundred times those of the rest: two of its six blocks will do."""
    del model.llm_adapter.blocks[2:]


MODELS = [
    Model(
        "pixart_alpha",
        "PixArtAlpha",
        _PIXART,
        _PIXART_SIZE,
        text,
    ),
    Model(
        "pixart_sigma",
        "PixArtSigma",
        _PIXART | {"image_model": "pixart_sigma", "micro_condition": False},
        _PIXART_SIZE,
        text,
    ),
    Model("hunyuan_dit", "HunyuanDiT", _HYDIT, ((1, 4, 16, 16),), _hydit),
    Model(
        "hunyuan_dit1",
        "HunyuanDiT1",
        _HYDIT | {"image_model": "hydit1", "size_cond": True, "use_style_cond": True},
        ((1, 4, 16, 16),),
        _hydit,
    ),
    Model("pixeldit", "PixelDiTT2I", _PIXELDIT, PIXELS, text),
    Model(
        "pid",
        "PiD",
        _PIXELDIT | {"image_model": "pid", "lq_hidden_dim": 32, "lq_num_res_blocks": 1},
        ((1, 3, 64, 64),),
        text,
        lambda draw: {"lq_latent": draw(1, 16, 2, 2), "degrade_sigma": ones(1) * 0.1},
        category="edit",
        refused=RESTORES,
    ),
    Model("hidream_o1", "HiDreamO1", O1, ((1, 3, 64, 64),), o1, refused=NO_GRADIENT),
    Model("hunyuan_image", "HunyuanImage21", _HUNYUAN_IMAGE, ((1, 64, 8, 8),), _glyphs),
    Model(
        "hunyuan_image_refiner",
        "HunyuanImage21Refiner",
        _HUNYUAN_IMAGE
        | {"in_channels": 128, "patch_size": [1, 1, 1], "axes_dim": [16, 56, 56], "byt5": False, "meanflow": True},
        ((1, 64, 1, 8, 8),),
        text,
        lambda draw: {"concat_latent_image": draw(1, 32, 1, 8, 8)},
        category="edit",
        refused=RESTORES,
    ),
    Model(
        "kandinsky5_image",
        "Kandinsky5Image",
        _KANDINSKY,
        FLAT,
        lambda draw: text(draw) | {"pooled_output": draw(1, 64)},
    ),
    Model(
        "ernie",
        "ErnieImage",
        {
            "image_model": "ernie",
            "hidden_size": 128,
            "num_attention_heads": 1,
            "num_layers": 2,
            "ffn_hidden_size": 256,
            "text_in_dim": 64,
        },
        DEEP,
        text,
    ),
    Model(
        "lens",
        "Lens",
        {
            "image_model": "lens",
            "num_layers": 2,
            "num_attention_heads": 1,
            "enc_hidden_dim": 32,
            "selected_layer_index": (0, 1),
        },
        DEEP,
        masked,
    ),
    Model(
        "ideogram4",
        "Ideogram4",
        {
            "image_model": "ideogram4",
            "num_layers": 2,
            "num_attention_heads": 1,
            "attention_head_dim": 128,
            "intermediate_size": 256,
            "adaln_dim": 64,
            "llm_features_dim": 64,
        },
        DEEP,
        masked,
    ),
    Model("krea2", "Krea2", KREA, STILL, text),
    Model("mage_flow", "MageFlow", MAGE, DEEP, text),
    Model("boogu", "Boogu", BOOGU, FLAT, unmasked),
    Model("joyimage", "JoyImage", JOY, STILL, text),
    Model(
        "anima",
        "Anima",
        COSMOS2 | {"image_model": "anima", "crossattn_emb_channels": 1024},
        STILL,
        _anima,
        smaller=_small_adapter,
    ),
]
