"""Models that change a given picture, or take one as an example, where ComfyUI's nodes put it."""

from __future__ import annotations

from typing import Any

from .more_pictures import BOOGU, JOY, KREA, MAGE, O1, o1
from .pictures import DEEP, FLAT, FLUX, FLUX2, HIDREAM, QWEN, STILL, Z_IMAGE, llama, pooled, text, unmasked
from .record import NO_GRADIENT, Draw, Given, Model, Shape, ones

OMNIGEN: dict[str, Any] = {
    "image_model": "omnigen2",
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 96,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 64,
    "ffn_dim_multiplier": None,
    "norm_eps": 1e-5,
    "axes_dim_rope": [16, 16, 16],
    "axes_lens": [1024, 1664, 1664],
    "text_feat_dim": 64,
    "timestep_scale": 1000.0,
}


def _references(*shapes: Shape, **more: Any) -> Given:
    """Reference latents, which need not have the size of what is made."""
    return lambda draw: {"reference_latents": [draw(*shape) for shape in shapes], **more}


def _filled(draw: Draw) -> dict[str, Any]:
    """The picture to fill, and where."""
    return {"concat_latent_image": draw(*FLAT[0]), "concat_mask": ones(1, 1, 16, 16), "guidance": 30.0}


def _edit(
    name: str, kind: str, config: dict[str, Any], latents: tuple[Shape, ...], words: Given, given: Given
) -> Model:
    return Model(name, kind, config, latents, words, given, category="edit")


MODELS = [
    _edit("flux1_kontext", "Flux", FLUX, FLAT, pooled, _references((1, 16, 12, 16), guidance=2.5)),
    _edit("flux1_fill", "FluxInpaint", FLUX | {"in_channels": 96}, FLAT, pooled, _filled),
    _edit("flux2_edit", "Flux2", FLUX2, DEEP, text, _references(DEEP[0], (1, 128, 6, 8), guidance=4.0)),
    _edit("qwen_edit", "QwenImage", QWEN, STILL, text, _references((1, 16, 1, 12, 16))),
    _edit("qwen_edit_3", "QwenImage", QWEN, STILL, text, _references(STILL[0], (1, 16, 1, 12, 16), (1, 16, 1, 8, 8))),
    _edit(
        "qwen_edit_2511",
        "QwenImage",
        QWEN | {"default_ref_method": "index_timestep_zero"},
        STILL,
        text,
        _references(STILL[0]),
    ),
    _edit(
        "hidream_e1",
        "HiDream",
        HIDREAM,
        FLAT,
        llama,
        lambda draw: {"concat_latent_image": draw(*FLAT[0])},
    ),
    Model("omnigen2", "Omnigen2", OMNIGEN, FLAT, unmasked),
    _edit("omnigen2_edit", "Omnigen2", OMNIGEN, FLAT, unmasked, _references(FLAT[0], (1, 16, 12, 16))),
    _edit("boogu_edit", "Boogu", BOOGU, FLAT, unmasked, _references(FLAT[0])),
    _edit("mage_flow_edit", "MageFlow", MAGE, DEEP, text, _references(DEEP[0])),
    _edit(
        "krea2_edit",
        "Krea2",
        KREA,
        STILL,
        text,
        _references(STILL[0], reference_latents_method="index_timestep_zero"),
    ),
    _edit("joyimage_edit", "JoyImage", JOY, STILL, text, _references(STILL[0])),
    _edit("z_image_omni", "ZImage", Z_IMAGE, FLAT, unmasked, _references(FLAT[0])),
    Model(
        "hidream_o1_edit",
        "HiDreamO1",
        O1,
        ((1, 3, 64, 64),),
        o1,
        # pictures, not latents: (1, height, width, 3) in [0, 1]
        lambda draw: {"reference_latents": [draw(1, 64, 64, 3).sigmoid()]},
        category="edit",
        refused=NO_GRADIENT,
    ),
]
