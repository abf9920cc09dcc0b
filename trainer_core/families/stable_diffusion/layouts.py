"""SD 1.5 and SDXL in single files: where parts begin in checkpoints, and what ComfyUI's separate files hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BaseModelError
from ..names import Shapes
from ..parts.clip import describe_clip
from ..parts.kl_names import describe_vae
from ..sources.layout import IN_CHECKPOINTS, Layout, PartLayout
from .unet import describe_unet

_CONFIGS = Path(__file__).parent / "configs"
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


SD1 = Layout(
    name="sd1",
    title="SD 1.5",
    configs=_CONFIGS / "sd1",
    parts={
        "unet": PartLayout("SD 1.5 UNet", IN_CHECKPOINTS, describe_unet),
        "vae": PartLayout("VAE", _VAE, describe_vae),
        "text_encoder": PartLayout(
            "CLIP-L text encoder", ("cond_stage_model.transformer.", "clip_l.transformer.", ""), describe_clip
        ),
    },
    schedule=_ddpm_schedule,
)
SDXL = Layout(
    name="sdxl",
    title="SDXL",
    configs=_CONFIGS / "sdxl",
    parts={
        "unet": PartLayout("SDXL UNet", IN_CHECKPOINTS, describe_unet),
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
    schedule=_ddpm_schedule,
)
