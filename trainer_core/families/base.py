"""The family contract (design §4): a `FamilySpec` says as data what a family is, a `Base` is one opened model of it.

A `Base` loads its parts one at a time and on request, so that a run can encode, free, and only then load the denoiser.
Text and latents go through the trainer as the family made them; nobody outside asks which family it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..errors import BaseModelError
from .device import pick_device, pick_dtype
from .sources import Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..objective.flow import FlowSchedule

TextEmbedding = dict[str, "Tensor"]
"""What a family's text encoders give for one prompt, by name, without batch dimension, on the CPU."""


@dataclass(frozen=True)
class SamplingDefaults:
    """How a family's previews are drawn when the job does not say."""

    width: int
    height: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class FamilySpec:
    """A family as data."""

    name: str
    title: str
    category: str
    """image, edit or video"""
    default_repo: str
    gated: bool
    vram_gb: str
    """Guidance in words, for the user."""
    latent_channels: int
    vae_factor: int
    """Pixels per latent, along an edge."""
    bucket_divisor: int
    """Widths and heights are multiples of this, in pixels."""
    default_timestep_type: str
    sampling: SamplingDefaults
    targets: dict[str, tuple[str, ...]]
    """Adapter targets by name: regular expressions that match module paths of the denoiser whole."""
    max_controls: int = 0
    """How many control images the denoiser takes beside the noisy one; 0 for models that only draw."""


@dataclass(frozen=True)
class ComfyModule:
    """Where a linear layer of the denoiser lives in ComfyUI's model.

    ComfyUI fuses some layers: then ours is the rows [start, stop) of `total`, counted in units of the smallest part (of
    a fused q, k, v each is one unit of three). `swap_halves` is set where ComfyUI keeps (shift, scale) and we (scale,
    shift).
    """

    path: str
    start: int = 0
    stop: int = 1
    total: int = 1
    swap_halves: bool = False


class Base(ABC):
    """One opened model. Loading is lazy; every `load_*` may be called again and gives the same object until freed."""

    spec: FamilySpec

    def __init__(self, source: Source, config: ModelConfig) -> None:
        self.source, self.config = source, config
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.text_encoder_dtype = pick_dtype(config.text_encoder_dtype, self.device)
        self.vae_dtype = pick_dtype("float32" if config.vae_dtype == "auto" else config.vae_dtype, self.device)

    # what the model is, known before anything is loaded

    @property
    @abstractmethod
    def schedule(self) -> FlowSchedule:
        """The noise schedule, for training and for sampling."""

    @property
    def timestep_type(self) -> str:
        """What `auto` stands for."""
        return str(self.source.profile.get("timestep_type", self.spec.default_timestep_type))

    @property
    def sampling(self) -> SamplingDefaults:
        """How to draw when the job does not say."""
        given = self.source.profile.get("sampling", {})
        return SamplingDefaults(**{**vars(self.spec.sampling), **given})

    @property
    @abstractmethod
    def transformer_file(self) -> Path:
        """The denoiser's weights as one safetensors file that ComfyUI loads.

        Raises:
            BaseModelError: if they are spread over several files.
        """

    @abstractmethod
    def image_tokens(self, height: int, width: int) -> int:
        """Number of image tokens for latents of a height and width."""

    @abstractmethod
    def comfy_module(self, path: str) -> ComfyModule:
        """Where a module of the denoiser lives in ComfyUI's model.

        Raises:
            AdapterError: for a path that the family does not know.
        """

    # text

    @abstractmethod
    def load_text_encoders(self) -> None:
        """Loads tokenizers and text encoders to the device."""

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> list[TextEmbedding]:
        """Embeds prompts as the model's own pipeline does; `load_text_encoders` first."""

    @abstractmethod
    def free_text_encoders(self) -> None:
        """Drops the text encoders."""

    @abstractmethod
    def text_fingerprint(self) -> str:
        """Changes whenever a prompt's embedding would."""

    # pixels

    @abstractmethod
    def load_vae(self) -> None:
        """Loads the VAE to the device."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, H, W) in [-1, 1] → mean and standard deviation of the normalised latents, on the CPU, fp32."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents → pixels (N, 3, H, W) in [-1, 1], on the CPU, fp32."""

    @abstractmethod
    def free_vae(self) -> None:
        """Drops the VAE."""

    @abstractmethod
    def pixel_fingerprint(self) -> str:
        """Changes whenever a picture's latents would."""

    # the denoiser

    @abstractmethod
    def load_denoiser(self) -> nn.Module:
        """The frozen denoiser on the device, in `self.dtype`; each call gives a fresh one, which the caller owns."""

    @abstractmethod
    def predict(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        t: Tensor,
        text: dict[str, Tensor],
        guidance: float | Tensor | None = None,
        controls: Sequence[Tensor] = (),
    ) -> Tensor:
        """The denoiser's prediction, in fp32 and in the layout of the latents.

        Args:
            noisy: normalised latents (N, C, H, W).
            t: times (N,) in [0, 1], 1 being noise.
            text: embeddings with a batch dimension, on the device.
            guidance: value for guidance-distilled models, one number or one for each sample (N,); None is what training
                uses.
            controls: normalised latents (N, C, H', W') of the control images, at most `spec.max_controls`; they may be
                of another size than `noisy`.
        """

    @property
    @abstractmethod
    def guidance_distilled(self) -> bool:
        """Whether the denoiser takes guidance as an input, instead of by a second pass."""


def stack_text(embeddings: list[TextEmbedding], device: torch.device) -> dict[str, Tensor]:
    """One batch of text embeddings, on the device.

    Raises:
        BaseModelError: if they differ in length, which a family must prevent by padding.
    """
    import torch

    try:
        return {name: torch.stack([e[name] for e in embeddings]).to(device) for name in embeddings[0]}
    except RuntimeError as error:
        raise BaseModelError(f"text embeddings of different lengths cannot be batched: {error}") from error
