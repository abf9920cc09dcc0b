"""The families' layouts in single files: where parts begin in checkpoints, and what ComfyUI's separate files hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import BaseModelError
from .clip import describe_clip
from .flux import describe_flux
from .layout import Layout, PartLayout, Shapes
from .t5 import describe_t5
from .unet import describe_unet
from .vae import describe_vae

_DENOISER = ("model.diffusion_model.", "diffusion_model.", "")
_VAE = ("first_stage_model.", "vae.", "")


def _ddpm_schedule(config: dict[str, Any], shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, Any]:
    """SD's schedule with what the file says of it: marker tensors that ComfyUI looks for, or modelspec's metadata."""
    if "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        raise BaseModelError(
            "was trained with an EDM noise schedule (as Playground 2.5 and CosXL), which LoRA Foundry does not know"
        )
    said = metadata.get("modelspec.prediction_type", "").lower()
    velocity = "v_pred" in shapes or said in {"v", "v_prediction", "v-prediction"}
    return {
        **config,
        "prediction_type": "v_prediction" if velocity else config["prediction_type"],
        "rescale_betas_zero_snr": "ztsnr" in shapes,
        "timestep_spacing": "trailing" if "ztsnr" in shapes else config["timestep_spacing"],
    }


def _flux_schedule(config: dict[str, Any], shapes: Shapes, _metadata: Mapping[str, str]) -> dict[str, Any]:
    """FLUX.1-dev's schedule, or schnell's, which has no guidance input and was distilled without a shift."""
    if any("guidance_in." in name or "guidance_embedder." in name for name in shapes):
        return config
    return {**config, "shift": 1.0, "use_dynamic_shifting": False}


SD1 = Layout(
    name="sd1",
    title="SD 1.5",
    parts={
        "unet": PartLayout("SD 1.5 UNet", _DENOISER, describe_unet),
        "vae": PartLayout("VAE", _VAE, describe_vae),
        "text_encoder": PartLayout(
            "CLIP-L text encoder", ("cond_stage_model.transformer.", "clip_l.transformer.", ""), describe_clip
        ),
    },
    tokenizers={"tokenizer": "clip"},
    schedule=_ddpm_schedule,
)
SDXL = Layout(
    name="sdxl",
    title="SDXL",
    parts={
        "unet": PartLayout("SDXL UNet", _DENOISER, describe_unet),
        "vae": PartLayout("VAE", _VAE, describe_vae),
        "text_encoder": PartLayout(
            "CLIP-L text encoder", ("conditioner.embedders.0.transformer.", "clip_l.transformer.", ""), describe_clip
        ),
        "text_encoder_2": PartLayout(
            "CLIP-G text encoder",
            ("conditioner.embedders.1.model.", "clip_g.transformer.", "clip_g.", ""),
            describe_clip,
        ),
    },
    tokenizers={"tokenizer": "clip", "tokenizer_2": "clip"},
    schedule=_ddpm_schedule,
)
FLUX1 = Layout(
    name="flux1",
    title="FLUX.1",
    parts={
        "transformer": PartLayout("FLUX.1 transformer", _DENOISER, describe_flux),
        "vae": PartLayout("VAE", ("vae.", "first_stage_model.", ""), describe_vae),
        "text_encoder": PartLayout(
            "CLIP-L text encoder", ("text_encoders.clip_l.transformer.", "clip_l.transformer.", ""), describe_clip
        ),
        "text_encoder_2": PartLayout(
            "T5-XXL text encoder", ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", ""), describe_t5
        ),
    },
    tokenizers={"tokenizer": "clip", "tokenizer_2": "t5"},
    schedule=_flux_schedule,
)
