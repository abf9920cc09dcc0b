"""What a model that ComfyUI has loaded is, read off the object: latents, category, sizes, what conditions it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...trainer_core.families.conditioning import MAIN, Stream
from ...trainer_core.families.spec import SamplingDefaults

_PICTURES = {
    "Anima",
    "CosmosT2IPredict2",
    "HunyuanImage21Refiner",
    "Krea2",
    "JoyImage",
    "QwenImage",
}
"""Classes of `comfy.supported_models` that draw pictures although their latents have a time axis."""
_NO_TEXT = "it takes a picture and no text, so there is no prompt that a LoRA could learn"
_RESTORES = "it enlarges or restores a given picture or clip, and a data set has no spoiled copies to start from"
_NO_NOISE = "it turns a picture into a map in one step, without noise, so there is nothing to train it on"
_NO_GRADIENT = "ComfyUI's code of it can make pictures, but has no gradients to train with"
_DRIVEN = "it is driven by {}, which a data set cannot give it"
_POSES, _SOUND_TRACK, _CAMERA = "a video of poses", "a sound track", "a path of the camera"
_REFUSED = {
    **dict.fromkeys(("Stable_Zero123", "SVD_img2vid", "SV3D_u", "SV3D_p"), _NO_TEXT),
    **dict.fromkeys(("SD_X4Upscaler", "PiD", "HunyuanImage21Refiner"), _RESTORES),
    **dict.fromkeys(("HunyuanVideo15_SR_Distilled", "SeedVR2"), _RESTORES),
    **dict.fromkeys(("LotusD", "WAN21_FlowRVS"), _NO_NOISE),
    **dict.fromkeys(("WAN22_Animate", "WAN_Animate2", "WAN21_SCAIL", "WAN21_SCAIL2"), _DRIVEN.format(_POSES)),
    **dict.fromkeys(("WAN22_S2V", "WAN21_HuMo", "WAN22_WanDancer"), _DRIVEN.format(_SOUND_TRACK)),
    **dict.fromkeys(("WAN21_Camera", "WAN22_Camera"), _DRIVEN.format(_CAMERA)),
    "HiDreamO1": _NO_GRADIENT,
    "WAN21_FunControl2V": _DRIVEN.format("a control video"),
    "MiniMaxH3": "its videos have 5, 22, 39, … frames, and clips are not cut to such lengths yet",
}
"""Classes of `comfy.supported_models` that cannot be trained here, and why."""
_ALONE = {
    "LTXAV": "between pictures and sound it uses the highest noise level of the batch",
    "MiniMaxH3": "it refuses more",
}
"""Classes that are right with one sample at a time only, and why."""
_SOUND = "it makes sound, and neither pictures nor videos"
_OTHER = "it makes neither pictures nor videos"
_NO_PICTURES = {"LatentFormat", "TripoSplat", "Trellis2"}
"""Latent formats of models that draw nothing."""
_FRAME_RATES = {
    "WAN22_T2V": 24.0,
    "WAN": 16.0,
    "LTX": 25.0,
    "CosmosI2VPredict2": 16.0,
    "GenmoMochi": 30.0,
    "CogVideoX": 8.0,
}
"""What a class's name begins with → frames per second, as ComfyUI's templates and the models' authors have it."""
_PREVIEW_FRAMES = 32
"""About how many frames previews have after the first."""
_DEFAULT_PIXELS = {"SD15": 512, "SD20": 768}


def name_of(model: Any) -> str:
    """ComfyUI's name of the architecture: the class in `comfy.supported_models`."""
    return type(model.model_config).__name__


def refusal(model: Any) -> str:
    """Why no LoRA of a model can be trained, in the user's words; empty if one can."""
    name, image_model = name_of(model), model.model_config.unet_config.get("image_model")
    if name in _REFUSED:
        return _REFUSED[name]
    if model.latent_format.latent_dimensions == 1 or name.startswith("ACE"):
        return _OTHER if "3d" in str(image_model) else _SOUND
    return _OTHER if type(model.latent_format).__name__ in _NO_PICTURES else ""


def mixes_samples(model: Any) -> bool:
    """Whether what the model says of a sample depends on the others of the batch."""
    return name_of(model) in _ALONE


def is_video(model: Any) -> bool:
    """Whether the model makes videos; pictures are then videos of one frame."""
    return has_time(model) and name_of(model) not in _PICTURES


def frame_rate(model: Any) -> float | None:
    """Frames per second that a model was made for; None for models of pictures."""
    if not is_video(model):
        return None
    name = name_of(model)
    if name.startswith("CogVideoX") and model.model_config.unet_config.get("patch_size_t"):
        return 16.0  # CogVideoX 1.5
    return next((rate for start, rate in _FRAME_RATES.items() if name.startswith(start)), 24.0)


def has_time(model: Any) -> bool:
    """Whether latents have a time axis, as those of some picture models have too."""
    return bool(model.latent_format.latent_dimensions == 3)


def streams(model: Any) -> tuple[Stream, ...]:
    """The picture's or the video's latents. Sound comes from the VAE's own stream where there is one (`sound.py`)."""
    form = model.latent_format
    main = Stream(
        MAIN,
        channels=form.latent_channels,
        factor=form.spacial_downscale_ratio,
        time_factor=form.temporal_downscale_ratio,
    )
    return (main,)


def divisor(model: Any) -> int:
    """What widths and heights are multiples of, in pixels: a patch of the transformer, or a U-Net's deepest cell."""
    cells = 1
    denoiser, config = model.diffusion_model, model.model_config.unet_config
    if "channel_mult" in config:
        cells = 2 ** (len(config["channel_mult"]) - 1)
    elif (patch := getattr(denoiser, "patch_size", config.get("patch_size"))) is not None:
        cells = patch if isinstance(patch, int) else int(patch[-1])
    return math.lcm(int(cells) * int(model.latent_format.spacial_downscale_ratio), 8)


def guidance_distilled(model: Any) -> bool:
    """Whether guidance is an input of the model, so that drawing takes one pass."""
    return bool(model.model_config.unet_config.get("guidance_embed"))


def reads(model: Any, key: str, hooks: Sequence[str] = ("extra_conds", "concat_cond")) -> bool:
    """Whether the model looks at a key of the conditioning, such as `reference_latents`.

    It is among the constants of the functions by which ComfyUI's classes take their conditioning apart.
    """
    for kind in type(model).__mro__:
        if kind.__name__ == "BaseModel":
            return False
        for hook in hooks:
            if key in getattr(getattr(kind.__dict__.get(hook), "__code__", None), "co_consts", ()):
                return True
    return False


def sampling_defaults(model: Any) -> SamplingDefaults:
    """How previews are drawn if the job does not say: what ComfyUI's templates do for most models."""
    if is_video(model):
        step = model.latent_format.temporal_downscale_ratio
        frames = _PREVIEW_FRAMES // step * step + 1
        return SamplingDefaults(width=832, height=480, steps=20, guidance=5.0, frames=frames)
    pixels = _DEFAULT_PIXELS.get(name_of(model), 1024)
    return SamplingDefaults(width=pixels, height=pixels, steps=20, guidance=3.5 if guidance_distilled(model) else 4.0)
