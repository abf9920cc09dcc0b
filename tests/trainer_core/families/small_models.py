"""Small models of each family in diffusers layout: real classes and real key names, random weights, few channels.

What single files do not tell and so follows the family is as there: 8 heads in SD 1.5's UNet, heads of 64 channels in
SDXL's, groups of 32, 256 channels for each size that SDXL reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from trainer_core.families.flux1.single_file import FLUX1

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
"""scheduler_config.json of SD 1.5 and SDXL, but for its class."""
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "max_position_embeddings": 77,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,  # as published: then transformers looks for the highest token instead
}


def small_sd(folder: Path, **scheduler: Any) -> Path:
    """SD 1.5: two levels, attention with 1x1 convolutions around it, one CLIP."""
    return _small(
        folder,
        "StableDiffusionPipeline",
        {
            "unet": lambda: UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=8,
            ),
            "text_encoder": lambda: CLIPTextModel(_clip(folder, "tokenizer")),
        },
        0.18215,
        scheduler,
    )


def small_sdxl(folder: Path, **scheduler: Any) -> Path:
    """SDXL: attention in the second level only, linear layers around it, two CLIPs, sizes."""
    wide = {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 64, "hidden_act": "gelu"}
    return _small(
        folder,
        "StableDiffusionXLPipeline",
        {
            "unet": lambda: UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=[1, 2],
                cross_attention_dim=32 + 64,
                attention_head_dim=[1, 1],
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=64 + 6 * 256,
            ),
            "text_encoder": lambda: CLIPTextModel(_clip(folder, "tokenizer")),
            "text_encoder_2": lambda: CLIPTextModelWithProjection(_clip(folder, "tokenizer_2", **wide)),
        },
        0.13025,
        scheduler,
    )


def small_flux(folder: Path) -> Path:
    """FLUX.1 with one double and two single blocks; its CLIP and T5 read letters.

    The embedded base is no such one: its VAE's groups and CLIP's heads are of sizes that single files do not tell.
    """
    clip = {**FLUX1.config("text_encoder"), "hidden_size": 64, "intermediate_size": 96, "vocab_size": 600}
    clip |= {"num_hidden_layers": 2, "num_attention_heads": 1}
    t5 = {**FLUX1.config("text_encoder_2"), "d_model": 32, "d_kv": 16, "d_ff": 48, "num_heads": 2}
    t5 |= {"num_layers": 2, "vocab_size": 600}
    transformer = {**FLUX1.config("transformer"), "num_attention_heads": 1, "joint_attention_dim": 32}
    transformer |= {"num_layers": 1, "num_single_layers": 2, "pooled_projection_dim": 64}
    vae = {**FLUX1.config("vae"), "block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
    parts: dict[str, Callable[[], nn.Module]] = {
        "transformer": lambda: FluxTransformer2DModel.from_config(transformer),
        "vae": lambda: AutoencoderKL.from_config(vae),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig.from_dict(clip)),
        "text_encoder_2": lambda: T5EncoderModel(T5Config.from_dict(t5)),
    }
    for k, (part, make) in enumerate(parts.items()):
        seeded(make, k).save_pretrained(folder / part)  # type: ignore[operator]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLUX1.config("scheduler")))
    for tokenizer in ("tokenizer", "tokenizer_2"):
        clip_tokenizer(folder / tokenizer)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    return folder


SMALL: dict[str, Callable[..., Path]] = {"flux1": small_flux, "sd15": small_sd, "sdxl": small_sdxl}
"""Family → what makes its small model. A new family joins the battery by its line here."""


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    """Writes a CLIP tokenizer that knows letters only; as in CLIP's, "!" is 0 and the end is the last."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=pad)
    tokenizer.save_pretrained(folder)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module whose start is drawn from a seed, without moving the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def _small(
    folder: Path, pipeline: str, parts: dict[str, Callable[[], nn.Module]], scale: float, scheduler: dict[str, Any]
) -> Path:
    folder.mkdir(parents=True)
    for part in [part for part in parts if part.startswith("text_encoder")]:
        clip_tokenizer(
            folder / part.replace("text_encoder", "tokenizer"), "!" if part.endswith("_2") else "<|endoftext|>"
        )
    for k, (part, make) in enumerate(parts.items()):
        seeded(make, k).save_pretrained(folder / part)  # type: ignore[operator]
    seeded(lambda: _vae(scale), 9).save_pretrained(folder / "vae")  # type: ignore[operator]
    DDIMScheduler.from_config({**SCHEDULER, **scheduler}).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    return folder


def _clip(folder: Path, tokenizer: str, **sizes: Any) -> CLIPTextConfig:
    vocabulary = json.loads((folder / tokenizer / "vocab.json").read_text(encoding="utf-8"))
    return CLIPTextConfig(**{**CLIP, "vocab_size": len(vocabulary), **sizes})


def _vae(scale: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        scaling_factor=scale,
        sample_size=64,
    )
