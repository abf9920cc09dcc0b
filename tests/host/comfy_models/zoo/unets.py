"""U-Nets: Stable Diffusion 1 to XL and their variants, Stable Video Diffusion, Stable Cascade."""

from __future__ import annotations

from typing import Any

from .record import RESTORES, Draw, Model, ones

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}
_SD2 = UNET | {"use_linear_in_transformer": True, "model_channels": 64}
"""Heads have 64 channels from here on."""
_XL = _SD2 | {
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "adm_in_channels": 64 + 6 * 256,
    "num_classes": "sequential",
}
_VIDEO = _SD2 | {
    "in_channels": 8,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
    "num_classes": "sequential",
}
_SIZE = ((1, 4, 16, 16),)
_FRAMES = ((3, 4, 16, 16),)

NO_TEXT = "it takes a picture and no text, so there is no prompt that a LoRA could learn"
_FRAMES_ARE_A_BATCH = "its batch is the frames of one clip"
NO_NOISE = "it turns a picture into a map in one step, without noise, so there is nothing to train it on"


def _text(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, 7, 64)}


def _pooled(draw: Draw) -> dict[str, Any]:
    return {"cross_attn": draw(1, 7, 64), "pooled_output": draw(1, 64)}


def _source(draw: Draw) -> dict[str, Any]:
    return {"concat_latent_image": draw(*_SIZE[0])}


def _inpainting(draw: Draw) -> dict[str, Any]:
    return {"concat_latent_image": draw(*_SIZE[0]), "concat_mask": ones(1, 1, 16, 16)}


def _vision(draw: Draw) -> dict[str, Any]:
    """CLIP's look at the first frame takes the text's place."""
    return {"cross_attn": draw(1, 1, 64)}


def _first_frame(draw: Draw) -> dict[str, Any]:
    return {"concat_latent_image": draw(*_SIZE[0]), "fps": 6, "motion_bucket_id": 127, "augmentation_level": 0.0}


def _xl(name: str, kind: str, **more: Any) -> Model:
    return Model(name, kind, _XL | more.pop("config", {}), _SIZE, _pooled, **more)


MODELS = [
    Model("sd15", "SD15", UNET, _SIZE, _text),
    Model("sd15_inpainting", "SD15", UNET | {"in_channels": 9}, _SIZE, _text, _inpainting, category="edit"),
    Model("sd15_ip2p", "SD15_instructpix2pix", UNET | {"in_channels": 8}, _SIZE, _text, _source, category="edit"),
    Model("sd20", "SD20", _SD2, _SIZE, _text),
    Model(
        "sd21_unclip_l",
        "SD21UnclipL",
        _SD2 | {"adm_in_channels": 1536, "num_classes": "sequential"},
        _SIZE,
        _text,
    ),
    Model(
        "sd21_unclip_h",
        "SD21UnclipH",
        _SD2 | {"adm_in_channels": 2048, "num_classes": "sequential"},
        _SIZE,
        _text,
    ),
    Model("lotus_d", "LotusD", _SD2 | {"adm_in_channels": 4}, _SIZE, _text, refused=NO_NOISE),
    _xl("sdxl", "SDXL"),
    _xl("sdxl_inpainting", "SDXL", config={"in_channels": 9}, given=_inpainting, category="edit"),
    _xl("sdxl_ip2p", "SDXL_instructpix2pix", config={"in_channels": 8}, given=_source, category="edit"),
    _xl("sdxl_refiner", "SDXLRefiner", config={"adm_in_channels": 64 + 5 * 256}),
    _xl("ssd_1b", "SSD1B"),
    _xl("segmind_vega", "Segmind_Vega"),
    _xl("koala_700m", "KOALA_700M"),
    _xl("koala_1b", "KOALA_1B"),
    Model(
        "sd_x4_upscaler",
        "SD_X4Upscaler",
        # its class turns self-attention off on the first three of four levels
        _SD2
        | {
            "in_channels": 7,
            "num_res_blocks": [1, 1, 1, 1],
            "channel_mult": [1, 1, 1, 1],
            "transformer_depth": [0, 1, 1, 1],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
            "num_classes": 1000,
        },
        ((1, 4, 16, 16),),
        _text,
        lambda draw: {"concat_image": draw(1, 3, 16, 16), "seed": 11},
        category="edit",
        refused=RESTORES,
    ),
    Model(
        "zero123",
        "Stable_Zero123",
        UNET | {"in_channels": 8, "context_dim": 768},
        _SIZE,
        lambda draw: {"cross_attn": draw(1, 1, 772)},
        _source,
        category="edit",
        refused=NO_TEXT,
        files=lambda draw: {"cc_projection.weight": draw(768, 772) * 0.03, "cc_projection.bias": draw(768)},
    ),
    Model(
        "svd",
        "SVD_img2vid",
        _VIDEO | {"adm_in_channels": 768},
        _FRAMES,
        _vision,
        _first_frame,
        category="video",
        refused=NO_TEXT,
        alone=_FRAMES_ARE_A_BATCH,
    ),
    Model(
        "sv3d_u",
        "SV3D_u",
        _VIDEO | {"adm_in_channels": 256},
        _FRAMES,
        _vision,
        _first_frame,
        category="video",
        refused=NO_TEXT,
        alone=_FRAMES_ARE_A_BATCH,
    ),
    Model(
        "sv3d_p",
        "SV3D_p",
        _VIDEO | {"adm_in_channels": 1280},
        _FRAMES,
        _vision,
        lambda draw: _first_frame(draw) | {"elevation": [0.0, 1.0, 2.0], "azimuth": [0.0, 120.0, 240.0]},
        category="video",
        refused=NO_TEXT,
        alone=_FRAMES_ARE_A_BATCH,
    ),
    Model(
        "cascade_c",
        "Stable_Cascade_C",
        {
            "stable_cascade_stage": "c",
            "c_cond": 64,
            "c_hidden": [64, 64],
            "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]],
            "c_clip_text": 64,
            "c_clip_text_pooled": 64,
        },
        ((1, 16, 8, 8),),
        _pooled,
    ),
    Model(
        "cascade_b",
        "Stable_Cascade_B",
        {
            "stable_cascade_stage": "b",
            "c_cond": 64,
            "c_hidden": [32, 64],
            "nhead": [-1, 2],
            "blocks": [[1, 1], [1, 1]],
            "block_repeat": [[1, 1], [1, 1]],
            "level_config": ["CT", "CTA"],
            "c_clip": 64,
        },
        ((1, 4, 16, 16),),
        _pooled,
        lambda draw: {"stable_cascade_prior": draw(1, 16, 2, 2)},
    ),
]
