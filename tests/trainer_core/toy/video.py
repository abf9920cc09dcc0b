"""The toy as a family of videos: latents with a time axis (4 frames each), sound beside them, and first frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from trainer_core.families.base import Base
from trainer_core.families.conditioning import AUDIO, MAIN, Conditioning, Stream, Streams
from trainer_core.families.spec import SamplingDefaults

from . import family
from .family import Toy

STEP = 4
SAMPLE_RATE = 1600
PER_LATENT = 100
"""Samples of sound in a latent of its."""
SPEC = replace(
    family.SPEC,
    name="toy_video",
    title="Toy Video",
    category="video",
    streams=(Stream(MAIN, channels=4, factor=8, time_factor=STEP), Stream(AUDIO, channels=2, factor=8, weight=0.5)),
    sampling=SamplingDefaults(width=32, height=64, steps=2, guidance=2.0, frames=9),
    frame_rate=16.0,
    sample_rate=SAMPLE_RATE,
    first_frame=True,
)


@dataclass(frozen=True)
class Batch(family.Batch):
    """What `collate` gives."""

    first: Tensor | None = None
    """(N, 4, T, h, w)"""
    rates: tuple[float | None, ...] = ()


class ToyVideo(Toy):
    """One opened toy of videos. `seen` holds the shapes that were encoded."""

    spec = SPEC
    seen: list[tuple[int, ...]] = []  # noqa: RUF012 - tests read it off the class

    def latent_shapes(self, width: int, height: int, frames: int = 1) -> dict[str, tuple[int, ...]]:
        sound = round(frames / 16 * SAMPLE_RATE) // PER_LATENT
        return {MAIN: (4, (frames - 1) // STEP + 1, height // 8, width // 8), AUDIO: (2, sound)}

    def collate(self, samples: Sequence[Conditioning], guidance: Tensor | float | None = None) -> Batch:
        plain = super().collate(samples, guidance)
        firsts = [one.first_frame for one in samples if one.first_frame is not None]
        first = torch.stack(firsts) if firsts else None
        return Batch(plain.text, plain.there, plain.controls, first, tuple(one.frame_rate for one in samples))

    def encode_pixels(self, pixels: Tensor, sound: Tensor | None = None) -> tuple[Streams, Streams]:
        """Means over 8 x 8 pixels and 4 frames, but for the first, which is alone; and over 100 samples."""
        assert sound is not None
        self.seen.append(tuple(pixels.shape))
        small = functional.avg_pool3d(pixels.float(), (1, 8, 8))
        groups = (
            [part.mean(2, keepdim=True) for part in small[:, :, 1:].split(STEP, dim=2)] if small.shape[2] > 1 else []
        )
        small = torch.cat([small[:, :, :1], *groups], dim=2)
        mean = {MAIN: torch.cat([small, small.mean(1, keepdim=True)], dim=1)}
        mean[AUDIO] = functional.avg_pool1d(sound.abs(), PER_LATENT)
        return mean, {name: torch.full_like(value, 0.1) for name, value in mean.items()}

    def encode_first_frame(self, pixels: Tensor) -> Tensor:
        known = pixels.clone()
        known[:, :, 1:] = 0
        small = functional.avg_pool3d(known.float(), (1, 8, 8))[:, :, ::STEP]
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1)

    def decode_latents(self, latents: Streams) -> Tensor:
        """(N, 3, T, H, W): every latent but the first is shown for 4 frames."""
        main = latents[MAIN][:, :3]
        frames = torch.cat([main[:, :, :1], main[:, :, 1:].repeat_interleave(STEP, dim=2)], dim=2)
        return functional.interpolate(frames, scale_factor=(1, 8, 8)).clamp(-1, 1)

    def load_denoiser(self, expert: str = "low_noise") -> nn.Module:
        return super().load_denoiser(expert)

    def predict(self, denoiser: nn.Module, noisy: Streams, t: Tensor, conditioning: family.Batch) -> Streams:
        assert isinstance(conditioning, Batch)
        first = () if conditioning.first is None else (conditioning.first,)
        found: Streams = denoiser(noisy, t, conditioning.text, conditioning.there, (*conditioning.controls, *first))
        return found


class Provider:
    """Offers the toy of videos."""

    def names(self) -> Sequence[str]:
        return ["toy_video"]

    def family(self, name: str) -> type[Base] | None:
        return ToyVideo if name == "toy_video" else None
