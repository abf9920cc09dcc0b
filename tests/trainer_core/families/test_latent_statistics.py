"""Latents' statistics: one number for all channels, or one for each, as diffusers' pipelines apply them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_core.config import ModelConfig
from trainer_core.errors import BaseModelError
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN
from trainer_core.families.registry import open_base
from trainer_core.families.sources import source as sources

MEANS = [0.1 * k - 0.7 for k in range(16)]
SPREADS = [0.5 + 0.25 * k for k in range(16)]


def with_vae(folder: Path, **config: Any) -> Base:
    """The embedded base with another VAE configuration."""
    shutil.copytree(sources.EMBEDDED, folder)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **config}), encoding="utf-8")
    return open_base(ModelConfig(source=str(folder), device="cpu"))


def test_statistics_of_each_channel(tmp_path: Path) -> None:
    """Normalised as (raw - mean) · factor / std (StableDiffusionXLImg2ImgPipeline.prepare_latents), and back."""
    one = with_vae(tmp_path / "each", latents_mean=MEANS, latents_std=SPREADS, scaling_factor=0.5, shift_factor=9.0)
    raw = with_vae(tmp_path / "raw", scaling_factor=1.0, shift_factor=0.0)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for base in (one, raw):
        base.load_vae()
    mean, std = (streams[MAIN] for streams in one.encode_pixels(pixels))
    raw_mean, raw_std = (streams[MAIN] for streams in raw.encode_pixels(pixels))
    for channel, (m, s) in enumerate(zip(MEANS, SPREADS, strict=True)):
        torch.testing.assert_close(mean[:, channel], (raw_mean[:, channel] - m) * 0.5 / s)
        torch.testing.assert_close(std[:, channel], raw_std[:, channel] * 0.5 / s)
    pictures, expected = one.decode_latents({MAIN: mean}), raw.decode_latents({MAIN: raw_mean})
    torch.testing.assert_close(pictures, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [{}, {"latents_mean": None, "latents_std": None}])
def test_one_number_computes_the_same_bits_as_ever(config: dict[str, Any], tmp_path: Path, base: Base) -> None:
    other = with_vae(tmp_path / "one", **config)
    other.load_vae()
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = json.loads((sources.EMBEDDED / "vae" / "config.json").read_text(encoding="utf-8"))
    mean, std = (streams[MAIN] for streams in other.encode_pixels(pixels))
    with torch.no_grad():
        posterior = other._vae.encode(pixels).latent_dist  # type: ignore[attr-defined]
    shift, scale = float(vae.get("shift_factor") or 0), float(vae["scaling_factor"])
    assert torch.equal(mean, (posterior.mean - shift) * scale)
    assert torch.equal(std, posterior.std * scale)


@pytest.mark.parametrize(
    "config",
    [
        {"latents_mean": MEANS},
        {"latents_std": SPREADS},
        {"latents_mean": MEANS[:4], "latents_std": SPREADS[:4]},
        {"latents_mean": MEANS, "latents_std": [0.0, *SPREADS[1:]]},
        {"latents_mean": ["a", *MEANS[1:]], "latents_std": SPREADS},
        {"latents_mean": 0.5, "latents_std": 1.0},
    ],
)
def test_statistics_that_are_none_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="vae"):
        with_vae(tmp_path / "bad", **config)
