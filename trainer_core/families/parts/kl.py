"""Pixels and latents of the families whose VAE is diffusers' AutoencoderKL: Stable Diffusion's and FLUX.1's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...config import ModelConfig
from ..base import Base
from ..conditioning import MAIN, Streams
from ..device import release_memory
from ..sources.source import Source, reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class KlBase(Base):
    """A base with an AutoencoderKL; latents are (raw - shift) · scale, as its configuration says.

    Shift and scale are one number each (`shift_factor`, `scaling_factor`), or, where it has `latents_mean` and
    `latents_std`, one for each channel: the mean, and `scaling_factor` / std, as in diffusers' pipelines.
    """

    def __init__(self, source: Source, config: ModelConfig) -> None:
        super().__init__(source, config)
        self._vae: Any = None
        vae = source.config("vae")
        with reading(source.folder / "vae"):
            self._shift, self._scale = latent_statistics(vae, self.spec.main.channels)

    def load_vae(self) -> None:
        if self._vae is None:
            (part,) = self.spec.of_role("vae")
            self._vae = self.load_part(part, self.vae_dtype)

    def encode_pixels(self, pixels: Tensor, sound: Tensor | None = None) -> tuple[Streams, Streams]:  # noqa: ARG002
        import torch

        with torch.no_grad():
            posterior = self._vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
        shift, scale = _of_channels(self._shift), _of_channels(self._scale)
        return {MAIN: (mean - shift) * scale}, {MAIN: std * scale}

    def decode_latents(self, latents: Streams) -> Tensor:
        import torch

        shift, scale = (_of_channels(numbers, self.device) for numbers in (self._shift, self._scale))
        raw = latents[MAIN].to(self.device, torch.float32) / scale + shift
        with torch.no_grad():
            pixels: Tensor = self._vae.decode(raw.to(self.vae_dtype)).sample
        return pixels.float().clamp(-1, 1).cpu()

    def free_vae(self) -> None:
        self._vae = None
        release_memory(self.device)

    def pixel_fingerprint(self) -> str:
        return f"{self.source.fingerprint('vae')}:{self.vae_dtype}"


Numbers = float | tuple[float, ...]
"""One for all channels, or one for each."""


def latent_statistics(vae: dict[str, Any], channels: int) -> tuple[Numbers, Numbers]:
    """Shift and scale of a VAE's latents, from its configuration.

    Raises:
        TypeError, ValueError: if they are no finite numbers, or not one for each channel.
    """
    scale = finite(vae.get("scaling_factor"), 1.0)
    means, spreads = vae.get("latents_mean"), vae.get("latents_std")
    if means is None and spreads is None:
        return finite(vae.get("shift_factor"), 0.0), scale
    if means is None or spreads is None:
        raise ValueError("latents_mean and latents_std belong together, and one of them is missing")
    for name, numbers in (("latents_mean", means), ("latents_std", spreads)):
        if not isinstance(numbers, list | tuple) or len(numbers) != channels:
            raise ValueError(f"{name} must hold a number for each of {channels} channels")
    if not all(isinstance(spread, int | float) and spread > 0 for spread in spreads):
        raise ValueError("latents_std must be above 0")
    return tuple(finite(mean, 0.0) for mean in means), tuple(scale / finite(spread, 1.0) for spread in spreads)


def _of_channels(numbers: Numbers, device: torch.device | None = None) -> Any:
    """As something that latents (N, C, H, W) can be multiplied by."""
    import torch

    return torch.tensor(numbers, device=device).view(-1, 1, 1) if isinstance(numbers, tuple) else numbers


def finite(value: Any, default: float) -> float:
    """A number of a configuration, or the default for none and for 0.

    Raises:
        TypeError, ValueError: if it is no finite number.
    """
    number = float(value or default)
    if not abs(number) < float("inf"):
        raise ValueError(f"{value!r} is no finite number")
    return number
