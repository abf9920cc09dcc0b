"""A small SDXL without its VAE: the UNet and the two CLIPs that adapters go into, and the family's names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainer_core.families.base import Base
from trainer_core.families.stable_diffusion.sdxl import StableDiffusionXL

CLIP: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
CLIP |= {"vocab_size": 50, "max_position_embeddings": 8, "projection_dim": 32, "eos_token_id": 2, "bos_token_id": 1}


@pytest.fixture(scope="module")
def sdxl() -> Base:
    """Its names and tables need no weights."""
    found: Base = object.__new__(StableDiffusionXL)
    return found


@pytest.fixture(scope="module")
def whole_unet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet: nn.Module = UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2],
            cross_attention_dim=16,
            attention_head_dim=[1, 2],
            use_linear_projection=True,
        )
    return unet.requires_grad_(False).eval()


@pytest.fixture
def unet(whole_unet: nn.Module) -> nn.Module:
    return copy.deepcopy(whole_unet)


@pytest.fixture(scope="module")
def encoders() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP)).requires_grad_(False),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP)).requires_grad_(False),
        }
