"""Stable Diffusion XL (Podell et al. 2023): two CLIPs, and a UNet that is told sizes and crops of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..conditioning import Collated
from ..registry import register_family
from ..sources.layout import Layout
from ..spec import LoraNames, Part, SamplingDefaults
from ..texts import check_width
from .layouts import SDXL
from .sd15 import SPEC as SD
from .sd15 import StableDiffusion

if TYPE_CHECKING:
    from torch import Tensor

SPEC = replace(
    SD,
    name="sdxl",
    title="SDXL",
    default_repo="stabilityai/stable-diffusion-xl-base-1.0",
    vram_gb="12 GB, 16 GB to be comfortable",
    sampling=SamplingDefaults(width=1024, height=1024, steps=25, guidance=5.0),
    parts=(
        SD.parts[0],
        SD.parts[1],
        Part("text_encoder_2", "text_encoder", "transformers.CLIPTextModelWithProjection", "tokenizer_2", "clip"),
        SD.parts[2],
    ),
    lora=LoraNames("lora_unet_", {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}, kohya=True),
    architecture="stable-diffusion-xl-v1-base",
    base_model_version="sdxl_base_v1-0",
)

CLIP_G_PADDING = "!"
"""What follows the end in CLIP-G's texts: token 0. Other CLIPs repeat the end."""


class StableDiffusionXL(StableDiffusion):
    """One opened SDXL."""

    spec = SPEC
    layout: ClassVar[Layout | None] = SDXL
    conditioned_on: ClassVar[str | None] = "text_time"

    def check_parts(self) -> None:
        super().check_parts()
        unet = self.source.config("unet")
        sizes = 6 * unet.get("addition_time_embed_dim", 0)
        pooled = self.source.config("text_encoder_2").get("projection_dim")
        check_width(self.source, "text_encoder_2", pooled, unet.get("projection_class_embeddings_input_dim", 0) - sizes)

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Both CLIPs' last hidden states but one, side by side (N, 77, D), and CLIP-G's projected output (N, P)."""
        import torch

        small, large = (self._encode(part, prompts, output_hidden_states=True) for part in self._encoders)
        text = torch.cat([small.hidden_states[-2], large.hidden_states[-2]], dim=-1)
        return {"text": text, "pooled": large.text_embeds}

    def _tokenizer(self, part: Part) -> Any:
        tokenizer = super()._tokenizer(part)
        if part.name == "text_encoder_2":
            tokenizer.pad_token = CLIP_G_PADDING
        return tokenizer

    def _added(self, x: Tensor, conditioning: Collated) -> dict[str, Tensor]:
        import torch

        time_ids = conditioning.time_ids
        if time_ids is None:
            height, width = (edge * self.spec.main.factor for edge in x.shape[2:])
            time_ids = torch.tensor([height, width, 0, 0, height, width], device=x.device).expand(len(x), -1)
        # they stay fp32 until they are sines and cosines: bfloat16 has no number between 1024 and 1032
        return {"text_embeds": conditioning.text["pooled"].to(self.dtype), "time_ids": time_ids.float()}


register_family(StableDiffusionXL)
