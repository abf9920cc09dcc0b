"""The base model and the adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .section import Section

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(Section):
    """The base model and how it is loaded."""

    family: str = Field("flux1", description="Model family; `lora-foundry families` lists them.")
    source: str = Field(
        "embedded",
        description="Where the weights come from: `embedded` (the tiny base that ships with LoRA Foundry), a folder in "
        "diffusers layout, or a Hugging Face repository id (downloaded when the job starts).",
    )
    dtype: Precision = Field(
        "auto", description="Precision of the denoiser: auto is bfloat16 on a GPU that has it and float32 on a CPU."
    )
    text_encoder_dtype: Precision = Field("auto", description="Precision of the text encoders.")
    vae_dtype: Precision = Field("auto", description="Precision of the VAE; auto is float32, which loses nothing.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps …")


class AdapterConfig(Section):
    """The LoRA that is trained."""

    type: Literal["lora"] = Field("lora", description="Kind of adapter.")
    rank: int = Field(
        16, ge=1, le=1024, description="Size of the LoRA. 8 to 16 for a style, 16 to 32 for a character or an object."
    )
    alpha: float | None = Field(
        None, gt=0, description="Strength of the LoRA's output is alpha / rank. Empty: the same as rank, so 1."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the LoRA's inputs that is zeroed in each step.")
    targets: Literal["attention", "attention_mlp", "all"] = Field(
        "attention_mlp",
        description="Which layers are adapted: attention only, attention and feed-forward, or every linear layer of "
        "the blocks (modulation too).",
    )
    warm_start: str | None = Field(None, description="A LoRA file (.safetensors) to start from, of the same rank.")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank
