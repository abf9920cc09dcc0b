"""Wan 2.1 and 2.2 and what was made of them."""

from __future__ import annotations

from typing import Any

from .pictures import padded
from .record import Draw, Given, Model, nothing, ones, seen
from .unets import NO_NOISE
from .video import first_known

WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 128,
    "ffn_dim": 128,
    "num_heads": 1,
    "num_layers": 2,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 64,
    "text_len": 7,
    "freq_dim": 64,
}
_CLIP = ((1, 16, 3, 8, 8),)
_WIDE = ((1, 48, 3, 4, 4),)
_SOUND = "it is driven by a sound track, which a data set cannot give it"
_POSE = "it is driven by a video of poses, which a data set cannot give it"
_CAMERA = "it is driven by a path of the camera, which a data set cannot give it"


def _image(draw: Draw) -> dict[str, Any]:
    """The first frame and grey, and which frames are to be made."""
    return {"concat_latent_image": draw(*_CLIP[0]), "concat_mask": first_known(1, 1, 3, 8, 8)}


def _seen(draw: Draw) -> dict[str, Any]:
    """Wan 2.1 sees the picture through CLIP too."""
    return _image(draw) | {"clip_vision_output": seen(draw, 1, 5, 1280)}


def _reference(draw: Draw) -> dict[str, Any]:
    return {"reference_latents": [draw(1, 16, 1, 8, 8)]}


def _wan(name: str, kind: str, given: Given = nothing, latents: Any = _CLIP, refused: str = "", **config: Any) -> Model:
    return Model(name, kind, WAN | config, latents, padded, given, category="video", refused=refused)


MODELS = [
    _wan("wan21_t2v", "WAN21_T2V"),
    _wan("wan21_i2v", "WAN21_I2V", _seen, model_type="i2v", in_dim=36),
    _wan(
        "wan21_flf2v",
        "WAN21_I2V",
        lambda draw: _image(draw) | {"clip_vision_output": seen(draw, 1, 10, 1280)},
        model_type="i2v",
        in_dim=36,
        flf_pos_embed_token_number=10,
    ),
    _wan("wan21_causal", "WAN21_CausalAR_T2V", causal_ar=True),
    # two experts are two MODELs of one class
    _wan("wan22_t2v_high", "WAN21_T2V"),
    _wan("wan22_t2v_low", "WAN21_T2V"),
    _wan("wan22_i2v_high", "WAN21_I2V", _image, in_dim=36),
    _wan("wan22_i2v_low", "WAN21_I2V", _image, in_dim=36),
    _wan("wan22_5b", "WAN22_T2V", latents=_WIDE, in_dim=48, out_dim=48),
    _wan(
        "wan22_5b_i2v",
        "WAN22_T2V",
        lambda draw: {"denoise_mask": first_known(1, 1, 3, 4, 4)},
        _WIDE,
        in_dim=48,
        out_dim=48,
    ),
    _wan(
        "wan21_fun_control",
        "WAN21_FunControl2V",
        lambda draw: {"concat_latent_image": draw(1, 32, 3, 8, 8), "clip_vision_output": seen(draw, 1, 5, 1280)},
        refused="it is driven by a control video, which a data set cannot give it",
        model_type="i2v",
        in_dim=48,
    ),
    _wan("wan21_vace", "WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96),
    _wan(
        "wan21_camera",
        "WAN21_Camera",
        lambda draw: {"camera_conditions": draw(1, 24, 3, 64, 64), "clip_vision_output": seen(draw, 1, 5, 1280)},
        refused=_CAMERA,
        model_type="camera",
        in_dim=32,
    ),
    _wan(
        "wan22_camera",
        "WAN22_Camera",
        lambda draw: {"camera_conditions": draw(1, 24, 3, 64, 64)},
        refused=_CAMERA,
        model_type="camera_2.2",
        in_dim=36,
    ),
    _wan(
        "wan22_s2v",
        "WAN22_S2V",
        lambda draw: _reference(draw) | {"audio_embed": draw(1, 25, 32, 12)},
        refused=_SOUND,
        model_type="s2v",
        audio_dim=32,
        audio_inject_layers=[0, 1],
    ),
    _wan(
        "wan21_humo",
        "WAN21_HuMo",
        lambda draw: _reference(draw) | {"audio_embed": draw(1, 3, 8, 5, 1280)},
        refused=_SOUND,
        model_type="humo",
        in_dim=36,
    ),
    _wan(
        "wan22_animate",
        "WAN22_Animate",
        lambda draw: _seen(draw) | {"pose_video_latent": draw(1, 16, 2, 8, 8)},
        refused=_POSE,
        model_type="animate",
        in_dim=36,
    ),
    _wan(
        "wan_animate2",
        "WAN_Animate2",
        lambda draw: _seen(draw) | {"pose_video_latent": draw(1, 16, 2, 8, 8)},
        refused=_POSE,
        model_type="animate2",
        in_dim=36,
    ),
    _wan(
        "wan21_flowrvs",
        "WAN21_FlowRVS",
        refused=NO_NOISE,
        model_type="flow_rvs",
    ),
    _wan(
        "wan21_scail",
        "WAN21_SCAIL",
        lambda draw: (
            _reference(draw) | {"pose_video_latent": draw(1, 16, 3, 4, 4), "clip_vision_output": seen(draw, 1, 5, 1280)}
        ),
        refused=_POSE,
        model_type="scail",
        in_dim=20,
    ),
    _wan(
        "wan21_scail2",
        "WAN21_SCAIL2",
        lambda draw: (
            _reference(draw)
            | {
                "pose_video_latent": draw(1, 16, 3, 4, 4),
                "driving_mask_28ch": ones(1, 3, 28, 4, 4),
                "ref_mask_28ch": ones(1, 4, 28, 8, 8),
                "clip_vision_output": seen(draw, 1, 5, 1280),
            }
        ),
        refused=_POSE,
        model_type="scail2",
        in_dim=20,
    ),
    _wan(
        "wan22_dancer",
        "WAN22_WanDancer",
        lambda draw: _seen(draw) | {"audio_embed": draw(1, 20, 35)},
        refused=_SOUND,
        model_type="wandancer",
        in_dim=36,
        audio_inject_layers=[0, 1],
        music_dim=32,
        music_latent_dim=32,
        music_heads=2,
    ),
]
