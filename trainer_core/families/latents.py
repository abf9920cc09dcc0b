"""Pixels and latents of the families whose VAE is diffusers' AutoencoderKL: Stable Diffusion's and FLUX.1's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from .base import Base
from .device import release_memory
from .sources import Source, reading

if TYPE_CHECKING:
    from torch import Tensor


class KlBase(Base):
    """A base with an AutoencoderKL; latents are (raw - shift) · scale, as its configuration says."""

    def __init__(self, source: Source, config: ModelConfig) -> None:
        super().__init__(source, config)
        self._vae: Any = None
        vae = source.config("vae")
        with reading(source.folder / "vae"):
            self._shift = finite(vae.get("shift_factor"), 0.0)
            self._scale = finite(vae.get("scaling_factor"), 1.0)

    def load_vae(self) -> None:
        if self._vae is None:
            from diffusers import AutoencoderKL

            self._vae = self.source.load("vae", AutoencoderKL, self.vae_dtype, self.device)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        with torch.no_grad():
            posterior = self._vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        mean, spread = posterior.mean.float().cpu(), posterior.std.float().cpu()
        return (mean - self._shift) * self._scale, spread * self._scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        import torch

        raw = latents.to(self.device, torch.float32) / self._scale + self._shift
        with torch.no_grad():
            pixels: Tensor = self._vae.decode(raw.to(self.vae_dtype)).sample
        return pixels.float().clamp(-1, 1).cpu()

    def free_vae(self) -> None:
        self._vae = None
        release_memory(self.device)

    def pixel_fingerprint(self) -> str:
        return f"{self.source.fingerprint('vae')}:{self.vae_dtype}"


def finite(value: Any, default: float) -> float:
    """A number of a configuration, or the default for none and for 0.

    Raises:
        TypeError, ValueError: if it is no finite number.
    """
    number = float(value or default)
    if not abs(number) < float("inf"):
        raise ValueError(f"{value!r} is no finite number")
    return number
