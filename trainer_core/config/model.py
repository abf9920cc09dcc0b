"""The base model and the adapter."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .section import Section, empty_is_none

Precision = Literal["auto", "float32", "bfloat16", "float16"]

Quantization = Literal["none", "float8", "int8", "6bit", "5bit", "4bit", "nf4", "3bit", "2bit", "uint4", "uint3"]

LINKS = "comfyui:"
"""How the source of a base begins that came over the links of a ComfyUI graph; a digest of what they held follows."""

FORMER_FIELDS = ("text_encoder", "text_encoder_2", "vae")
"""Parts that were fields of a model before November 2026, when `files` took their place; jobs may still have them."""


class ModelConfig(Section):
    """The base model and how it is loaded."""

    family: str = Field(
        "auto",
        description="Model family; auto finds it by the source. `lora-foundry families` lists them.",
    )
    source: str = Field(
        "embedded",
        description="Where the weights come from: `embedded` (the tiny base that ships with LoRA Foundry), a "
        "checkpoint or diffusion model file (.safetensors), a folder in diffusers layout, or a Hugging Face repository "
        "id (downloaded when the job starts).",
    )
    files: dict[str, str] = Field(
        {},
        description="Parts that are files of their own, where the source does not hold them or another is meant: "
        "`text_encoder: clip_l.safetensors`. `lora-foundry families` lists the parts of each family.",
    )
    tokenizers: str | None = Field(
        None,
        description="Folder with the tokenizers, for single files outside ComfyUI. Empty: those of ComfyUI, or of "
        "Hugging Face's cache.",
    )
    dtype: Precision = Field(
        "auto", description="Precision of the denoiser: auto is bfloat16 on a GPU that has it and float32 on a CPU."
    )
    text_encoder_dtype: Precision = Field("auto", description="Precision of the text encoders.")
    vae_dtype: Precision = Field("auto", description="Precision of the VAE; auto is float32, which loses nothing.")
    quantization: Quantization = Field(
        "none",
        description="How the denoiser's frozen layers are held: none is as they come; float8, int8 and 6bit cost "
        "hardly any accuracy, 5bit and 4bit some, 3bit and 2bit ask for a recovery adapter. nf4 is bitsandbytes'; "
        "uint4 and uint3 are what AI Toolkit's recovery adapters (ARA) were made for.",
    )
    text_encoder_quantization: Quantization = Field("none", description="The same for the text encoders.")
    recovery_adapter: str | None = Field(
        None,
        description="A recovery adapter (.safetensors) for a quantized denoiser: gives back what quantization loses, "
        "and is no part of the LoRA. `lora-foundry recover` makes one.",
    )
    low_rank: int = Field(
        0,
        ge=0,
        le=1024,
        description="Rank of a part of each quantized weight that is kept in full precision; 0 is none, 16 is usual.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps …")

    @field_validator("recovery_adapter")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return empty_is_none(value)

    @model_validator(mode="before")
    @classmethod
    def _parts_by_their_old_names(cls, data: Any) -> Any:
        """Before there was `files`, these parts had fields of their own."""
        if not isinstance(data, dict):
            return data
        old = {name: data[name] for name in FORMER_FIELDS if data.get(name)}
        files = data.get("files", {})
        if isinstance(files, dict):
            old |= {name: file for name, file in files.items() if file}
            data = {**{name: value for name, value in data.items() if name not in FORMER_FIELDS}, "files": old}
        return data


class AdapterConfig(Section):
    """The LoRA that is trained."""

    type: Literal["lora", "dora", "lokr", "loha"] = Field(
        "lora",
        description="Kind of adapter: lora; dora (a LoRA that learns each output's magnitude apart; slower); lokr and "
        "loha (Kronecker and Hadamard products: more expressive for their size).",
    )
    rank: int = Field(
        16, ge=1, le=1024, description="Size of the LoRA. 8 to 16 for a style, 16 to 32 for a character or an object."
    )
    alpha: float | None = Field(
        None, gt=0, description="Strength of the LoRA's output is alpha / rank. Empty: the same as rank, so 1."
    )
    conv_rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Also adapt the convolutions (SD 1.5, SDXL), with this rank: more texture, a larger file. "
        "Empty: not.",
    )
    conv_alpha: float | None = Field(
        None, gt=0, description="As alpha, for convolutions. Empty: the same as conv_rank."
    )
    factor: int = Field(
        -1,
        ge=-1,
        le=1024,
        description="lokr: size of the smaller factor; larger is smaller files. -1 or 0: as even as can be.",
    )
    text_encoders: bool = Field(
        False, description="Also adapt the CLIP text encoders. Captions are then encoded anew in each step."
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

    @property
    def conv_scale(self) -> float:
        """conv_alpha / conv_rank; 1 without convolutions."""
        return 1.0 if self.conv_rank is None or self.conv_alpha is None else self.conv_alpha / self.conv_rank
