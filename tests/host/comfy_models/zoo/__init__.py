"""A tiny model of every class of `comfy.supported_models` that makes pictures or video, and why the others are none.

Importing it imports neither torch nor ComfyUI: names are known when tests are collected.
"""

from __future__ import annotations

from . import edit, more_pictures, pictures, unets, video, wan
from .record import Model

MODELS: dict[str, Model] = {
    model.name: model for part in (unets, pictures, more_pictures, edit, video, wan) for model in part.MODELS
}
"""By name."""

_SOUND = "it makes sound, and neither pictures nor videos"
_OTHER = "it makes neither pictures nor videos"

NONE: dict[str, str] = {
    **dict.fromkeys(("StableAudio", "StableAudio3", "ACEStep", "ACEStep15", "MiniMaxMusic3"), _SOUND),
    **dict.fromkeys(("Hunyuan3Dv2", "Hunyuan3Dv2_1", "Hunyuan3Dv2mini", "Trellis2", "TripoSplat"), _OTHER),
    **dict.fromkeys(("RT_DETR_v4", "SAM3", "SAM31", "DepthAnything3"), _OTHER),
}
"""Classes without a model here, and why no LoRA of them is trained."""
