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

_MUSIC = "it makes sound, neither pictures nor video"
_SHAPES = "it makes three-dimensional shapes, neither pictures nor video"

NONE: dict[str, str] = {
    "StableAudio": _MUSIC,
    "StableAudio3": _MUSIC,
    "ACEStep": _MUSIC,
    "ACEStep15": _MUSIC,
    "MiniMaxMusic3": _MUSIC,
    "Hunyuan3Dv2": _SHAPES,
    "Hunyuan3Dv2_1": _SHAPES,
    "Hunyuan3Dv2mini": _SHAPES,
    "Trellis2": _SHAPES,
    "TripoSplat": _SHAPES,
    "RT_DETR_v4": "it finds things in a picture and makes none",
    "SAM3": "it cuts things out of a picture and makes none",
    "SAM31": "it cuts things out of a picture and makes none",
    "DepthAnything3": "it tells how far things in a picture are and makes none",
}
"""Classes without a model here, and why no LoRA of them is trained."""
