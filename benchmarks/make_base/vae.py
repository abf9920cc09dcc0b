"""Stage `vae`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer_core.embedded.shapes import SCRIBBLE, SHAPES, random_scene

from .common import DEVICE, LATENT_SCALE, LATENT_SHIFT, Clock, pictures, save, to_pixels


def build_vae(out: Path, steps: int = 3500, batch: int = 16) -> None:
    """A KL autoencoder, 8x smaller with 16 channels as FLUX.1's, on drawn shapes and random polygons.

    Two rounds of `steps`: a stronger KL term first, which settles the latents near FLUX.1's scale and leaves about half
    of the channels unused, then a weak one, which lets edges and corners become sharp.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    rng = random.Random(1)
    vae: Any = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=LATENT_SHIFT,
        scaling_factor=LATENT_SCALE,
    )
    vae = vae.to(DEVICE)
    kinds = [*SHAPES, SCRIBBLE, SCRIBBLE]
    images = pictures([random_scene(rng, rng.choice(kinds)) for _ in range(16000)], rng)
    clock = Clock("vae")
    clock(parameters=f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f}M", drawn=len(images))
    for kl_weight in (1e-5, 1e-6):
        _train_vae(vae, images, steps, batch, kl_weight, clock)
        save(vae, out / "vae")


def _train_vae(vae: Any, images: Tensor, steps: int, batch: int, kl_weight: float, clock: Clock) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pixels = to_pixels(images[torch.randint(0, len(images), (batch,))]).to(DEVICE)
        posterior = vae.encode(pixels).latent_dist
        # KL to N(shift, 1/scale²): latents come out with the mean and the spread that FLUX.1's constants expect
        mean, logvar = (posterior.mean - LATENT_SHIFT) * LATENT_SCALE, posterior.logvar + 2 * np.log(LATENT_SCALE)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        error = vae.decode(posterior.sample()).sample - pixels
        loss = error.square().mean() + 0.5 * error.abs().mean() + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            clock(kl_weight=kl_weight, step=step, mse=f"{error.square().mean().item():.5f}", kl=f"{kl.item():.0f}")
