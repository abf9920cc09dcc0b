"""A base's text encoders and VAE with the methods that ComfyUI's nodes call on a CLIP and a VAE.

ComfyUI has no loader for a text encoder or VAE of unusual size, such as the embedded base's. Each call loads the part
and frees it afterwards: ComfyUI's memory management does not know of it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..trainer_core.api import MAIN, Base
from . import host


class Clip:
    """What CLIPTextEncode and LoraLoader call on a CLIP."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self.cond_stage_model = torch.nn.Module()
        """Empty: what a LoRA has for the text encoders is not applied, and ComfyUI's log says so."""
        self.patcher = self

    def clone(self) -> Clip:
        return Clip(self._base)

    def add_patches(self, _patches: dict[str, Any], _strength: float = 1.0) -> list[str]:
        """The patched keys: none."""
        return []

    def set_attachments(self, key: str, attachment: Any) -> None:
        """Metadata of a LoRA, which nothing here needs."""

    def tokenize(self, text: str, **_options: Any) -> dict[str, str]:
        return {"text": text}

    def encode_from_tokens_scheduled(
        self, tokens: dict[str, str], add_dict: dict[str, Any] | None = None, **_options: Any
    ) -> list[list[Any]]:
        """CONDITIONING: text (1, L, D) and, where the base has it, pooled (1, P)."""
        text, pooled = self._encode(tokens["text"])
        return [[text, {"pooled_output": pooled, **(add_dict or {})}]]

    def encode_from_tokens(self, tokens: dict[str, str], return_pooled: bool = False, return_dict: bool = False) -> Any:
        text, pooled = self._encode(tokens["text"])
        if return_dict:
            return {"cond": text, "pooled_output": pooled}
        return (text, pooled) if return_pooled else text

    def _encode(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        self._base.load_text_encoders()
        try:
            embedding = self._base.encode_prompts([prompt])[0]
        finally:
            self._base.free_text_encoders()
        pooled = embedding.get("pooled")
        text = host.to_intermediate(embedding["text"][None])
        return text, None if pooled is None else host.to_intermediate(pooled[None])


class Vae:
    """What VAEDecode and VAEEncode (tiled too) call on a VAE. Latents over links are neither shifted nor scaled."""

    def __init__(self, base: Base, latent_format: Any) -> None:
        """`latent_format` is the MODEL's: what it does to latents that leave the sampler is undone here."""
        self._base, self._format = base, latent_format

    def decode(self, samples: torch.Tensor, **_options: Any) -> torch.Tensor:
        """Raw latents (N, C, h, w) → images (N, H, W, 3) in [0, 1]."""
        normalised = self._format.process_in(samples.float())
        self._base.load_vae()
        try:
            pixels = self._base.decode_latents({MAIN: normalised})
        finally:
            self._base.free_vae()
        return host.to_intermediate(((pixels + 1) / 2).clamp(0, 1).movedim(1, -1))

    def encode(self, pixels: torch.Tensor, **_options: Any) -> torch.Tensor:
        """Images (N, H, W, 3) in [0, 1] → raw latents (N, C, h, w), cropped to whole latents."""
        factor = self._base.spec.main.factor
        height, width = (size - size % factor for size in pixels.shape[1:3])
        self._base.load_vae()
        try:
            mean, _ = self._base.encode_pixels(pixels[:, :height, :width, :3].movedim(-1, 1) * 2 - 1)
        finally:
            self._base.free_vae()
        return host.to_intermediate(self._format.process_out(mean[MAIN]))

    def decode_tiled(self, samples: torch.Tensor, **_options: Any) -> torch.Tensor:
        return self.decode(samples)

    def encode_tiled(self, pixels: torch.Tensor, **_options: Any) -> torch.Tensor:
        return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        return self._base.spec.main.factor

    def spacial_compression_encode(self) -> int:
        return self._base.spec.main.factor

    def temporal_compression_decode(self) -> None:
        """None: pictures have no time."""
