"""Checkpoints that a real ComfyUI loads as SD 1.5 and SDXL, as small as it takes them, with random weights.

ComfyUI reads the depths of a UNet from the file, and expects its widths: 320 channels first, text 768 or 2048 wide, and
for SDXL one of a few lists of depths (here Segmind Vega's). It builds text encoders and the VAE in their one size,
unless it is told otherwise (`TEXT_LAYERS`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.sources.layout import Layout
from trainer_core.families.stable_diffusion.layouts import SD1, SDXL

from ..trainer_core.families.checkpoints import write_checkpoint, write_parts
from ..trainer_core.families.small_models import SCHEDULER, seeded

TEXT_LAYERS = 3
"""Layers of the text encoders in checkpoints that are not `whole`."""
_NARROW = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
"""A small VAE."""


def sd15(path: Path, *, whole: bool, dtype: torch.dtype) -> Path:
    """SD 1.5 with two levels of one block: 42 million weights in the UNet, where the real one has 860.

    Args:
        whole: with a text encoder and a VAE of the size that Load Checkpoint builds; else with smaller ones.
    """
    return _written(path, SD1, {"unet": _sd_unet}, whole, dtype)


def sdxl(path: Path, *, dtype: torch.dtype) -> Path:
    """SDXL with Segmind Vega's depths at equal widths; small text encoders of the real widths, a small VAE."""
    return _written(path, SDXL, {"unet": _sdxl_unet}, False, dtype)


def flux(models: Path) -> dict[str, Path]:
    """FLUX.1 as the separate files that ComfyUI's users have, in ComfyUI's models folders; part → file.

    Its text encoders are narrow and read ComfyUI's own tokenizers. ComfyUI loads the diffusion model alone.
    """
    clip = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_heads": 2, "num_layers": 2}
    denoiser = {"num_attention_heads": 1, "num_layers": 1, "num_single_layers": 1}
    denoiser |= {"joint_attention_dim": 32, "pooled_projection_dim": 64}
    configs = {"text_encoder": clip, "text_encoder_2": t5, "transformer": denoiser, "vae": _NARROW}
    full = {part: {**FLUX1.config(part), **sizes} for part, sizes in configs.items()}
    made = models / "flux made"
    parts: dict[str, Callable[[], nn.Module]] = {
        "transformer": lambda: FluxTransformer2DModel.from_config(full["transformer"]),
        "vae": lambda: AutoencoderKL.from_config(full["vae"]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig.from_dict(full["text_encoder"])),
        "text_encoder_2": lambda: T5EncoderModel(T5Config.from_dict(full["text_encoder_2"])),
    }
    for k, (part, make) in enumerate(parts.items()):
        seeded(make, k).save_pretrained(made / part)  # type: ignore[operator]
    files = write_parts(made, FLUX1, made / "files")
    names = {
        "transformer": "diffusion_models/small_flux.safetensors",
        "vae": "vae/small_ae.safetensors",
        "text_encoder": "text_encoders/small_clip_l.safetensors",
        "text_encoder_2": "text_encoders/small_t5.safetensors",
    }
    for part, name in names.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        files[part].rename(models / name)
    shutil.rmtree(made)
    return {part: models / name for part, name in names.items()}


def _sd_unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(320, 320),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def _sdxl_unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(320, 320, 320),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1, 2],
        cross_attention_dim=2048,
        attention_head_dim=[5, 5, 5],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )


def _written(path: Path, layout: Layout, parts: dict[str, Any], whole: bool, dtype: torch.dtype) -> Path:
    folder = path.with_suffix("")
    for part in layout.parts:
        if part.startswith("text_encoder"):
            sizes = {} if whole else {"num_hidden_layers": TEXT_LAYERS}
            config = CLIPTextConfig.from_dict({**layout.config(part), **sizes})
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            parts[part] = lambda kind=kind, config=config: kind(config)
    vae = {**layout.config("vae"), **({} if whole else _NARROW)}
    parts["vae"] = lambda: AutoencoderKL.from_config(vae)
    for k, (part, make) in enumerate(parts.items()):
        seeded(make, k).to(dtype).save_pretrained(folder / part)
    DDIMScheduler.from_config(SCHEDULER).save_pretrained(folder / "scheduler")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, layout, path)
    shutil.rmtree(folder)
    return path
