"""Models that people train, at their published size: configurations as ComfyUI's detection finds them in the files.

There are no weights: they are for the meta device, where there are shapes and dtypes alone.
"""

from __future__ import annotations

from typing import Any

from .edit import OMNIGEN
from .pictures import CHROMA, FLUX, FLUX2, HIDREAM, LUMINA, QWEN, Z_IMAGE
from .record import Draw, Given, Model, Shape, nothing, ones, seen
from .unets import UNET
from .video import LTX2
from .wan import WAN

_FLUX = FLUX | {
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
}
_CHROMA = {key: value for key, value in _FLUX.items() if key != "guidance_embed"} | {
    **{key: CHROMA[key] for key in ("image_model", "in_channels", "out_channels", "vec_in_dim", "in_dim")},
    "out_dim": 3072,
    "hidden_dim": 5120,
    "n_layers": 5,
}
_NEXT_DIT = {"n_refiner_layers": 2, "multiple_of": 256}
_HIDREAM = HIDREAM | {
    "num_layers": 16,
    "num_single_layers": 32,
    "num_attention_heads": 20,
    "caption_channels": [4096, 4096],
    "text_emb_dim": 2048,
    "num_routed_experts": 4,
    "llama_layers": [*range(32), *[31] * 16],
}
_WAN = WAN | {
    "dim": 5120,
    "ffn_dim": 13824,
    "num_heads": 40,
    "num_layers": 40,
    "text_dim": 4096,
    "text_len": 512,
    "freq_dim": 256,
}
_XL = {"num_classes": "sequential", "adm_in_channels": 2816, "context_dim": 2048, "use_linear_in_transformer": True}
_PICTURE: tuple[Shape, ...] = ((1, 16, 128, 128),)
_DEEP: tuple[Shape, ...] = ((1, 128, 64, 64),)
_CLIP: tuple[Shape, ...] = ((1, 16, 9, 60, 104),)
"""832x480, 33 frames"""


def _text(tokens: int, width: int, pooled: int = 0) -> Given:
    return lambda draw: {
        "cross_attn": draw(1, tokens, width),
        "pooled_output": draw(1, pooled) if pooled else None,
    }


def _llama(draw: Draw) -> dict[str, Any]:
    return _text(128, 4096, 2048)(draw) | {"conditioning_llama3": draw(1, 32, 128, 4096)}


def _references(*shapes: Shape) -> Given:
    return lambda draw: {"reference_latents": [draw(*shape) for shape in shapes]}


def _first_frame(draw: Draw) -> dict[str, Any]:
    return {"concat_latent_image": draw(*_CLIP[0]), "concat_mask": draw(1, 1, 9, 60, 104)}


def _real(billions: float, kind: str, config: dict[str, Any], latents: Any, text: Given, given: Given = nothing) -> Any:
    return billions, Model("", kind, config, latents, text, given)


REAL: dict[str, tuple[float, Model]] = {
    "SD 1.5": _real(
        0.8595,
        "SD15",
        UNET
        | {
            "model_channels": 320,
            "num_res_blocks": [2] * 4,
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1] * 9 + [0] * 3,
            "context_dim": 768,
        },
        ((1, 4, 64, 64),),
        _text(77, 768),
    ),
    "SDXL": _real(
        2.5675,
        "SDXL",
        UNET
        | _XL
        | {
            "model_channels": 320,
            "num_res_blocks": [2] * 3,
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
        },
        ((1, 4, 128, 128),),
        lambda draw: _text(77, 2048)(draw) | {"pooled_output": ones(1, 1280)},
    ),
    "FLUX.1-dev and Kontext": _real(11.901, "Flux", _FLUX, _PICTURE, _text(512, 4096, 768), _references(_PICTURE[0])),
    "Chroma": _real(8.9, "Chroma", _CHROMA, _PICTURE, _text(512, 4096)),
    "FLUX.2-dev": _real(
        32.2,
        "Flux2",
        FLUX2 | {"hidden_size": 6144, "num_heads": 48, "depth": 8, "depth_single_blocks": 48, "context_in_dim": 15360},
        _DEEP,
        _text(512, 15360),
        _references(_DEEP[0]),
    ),
    "FLUX.2-klein-base-4B": _real(
        3.88,
        "Flux2",
        FLUX2
        | {
            "hidden_size": 3072,
            "num_heads": 24,
            "depth": 5,
            "depth_single_blocks": 20,
            "context_in_dim": 7680,
            "guidance_embed": False,
        },
        _DEEP,
        _text(512, 7680),
    ),
    "FLUX.2-klein-base-9B": _real(
        9.08,
        "Flux2",
        FLUX2
        | {
            "hidden_size": 4096,
            "num_heads": 32,
            "depth": 8,
            "depth_single_blocks": 24,
            "context_in_dim": 12288,
            "guidance_embed": False,
        },
        _DEEP,
        _text(512, 12288),
    ),
    "Lumina-Image-2.0": _real(
        2.61,
        "Lumina2",
        LUMINA
        | _NEXT_DIT
        | {
            "dim": 2304,
            "n_layers": 26,
            "n_heads": 24,
            "n_kv_heads": 8,
            "cap_feat_dim": 2304,
            "ffn_dim_multiplier": 4.0,
        },
        _PICTURE,
        _text(256, 2304),
    ),
    "Z-Image-Turbo": _real(
        6.15,
        "ZImage",
        Z_IMAGE | _NEXT_DIT | {"dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560},
        _PICTURE,
        _text(128, 2560),
    ),
    "Qwen-Image and Edit-2509": _real(
        20.43,
        "QwenImage",
        QWEN | {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584},
        ((1, 16, 1, 128, 128),),
        _text(1024, 3584),
        _references(*[(1, 16, 1, 128, 128)] * 3),
    ),
    "HiDream-I1": _real(17.1, "HiDream", _HIDREAM, _PICTURE, _llama),
    "OmniGen2": _real(
        3.97,
        "Omnigen2",
        OMNIGEN
        | {
            "axes_dim_rope": [40, 40, 40],
            "hidden_size": 2520,
            "multiple_of": 256,
            "num_attention_heads": 21,
            "num_kv_heads": 7,
            "num_layers": 32,
            "num_refiner_layers": 2,
            "text_feat_dim": 2048,
        },
        _PICTURE,
        lambda draw: _text(256, 2048)(draw) | {"attention_mask": ones(1, 256).long()},
    ),
    "Wan2.1-T2V-1.3B": _real(
        1.42,
        "WAN21_T2V",
        _WAN | {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
        _CLIP,
        _text(512, 4096),
    ),
    "Wan2.1-I2V-14B": _real(
        16.4,
        "WAN21_I2V",
        _WAN | {"model_type": "i2v", "in_dim": 36},
        _CLIP,
        _text(512, 4096),
        lambda draw: _first_frame(draw) | {"clip_vision_output": seen(draw, 1, 257, 1280)},
    ),
    "Wan2.2-T2V-A14B": _real(14.29, "WAN21_T2V", _WAN, _CLIP, _text(512, 4096)),
    "Wan2.2-I2V-A14B": _real(14.29, "WAN21_I2V", _WAN | {"in_dim": 36}, _CLIP, _text(512, 4096), _first_frame),
    "Wan2.2-TI2V-5B": _real(
        5.0,
        "WAN22_T2V",
        _WAN | {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48, "out_dim": 48},
        ((1, 48, 9, 44, 80),),
        _text(512, 4096),
        lambda draw: {"denoise_mask": draw(1, 1, 9, 44, 80)},
    ),
    "LTX-2": _real(
        18.9 + 0.71,  # with what prepares the text, which others keep apart
        "LTXAV",
        {key: LTX2[key] for key in ("image_model", "in_channels")}
        | {
            "cross_attention_dim": 4096,
            "attention_head_dim": 128,
            "num_attention_heads": 32,
            "caption_channels": 3840,
            "audio_cross_attention_dim": 2048,
            "audio_attention_head_dim": 64,
            "audio_num_attention_heads": 32,
            "num_layers": 48,
        },
        ((1, 128, 9, 16, 24), (1, 8, 65, 16)),
        _text(1024, 7680),
    ),
}
"""Billions of weights of the published diffusion model, and the model."""
