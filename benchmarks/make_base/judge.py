"""Stage `judge`."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer_core.embedded.judge import CLASSES, COLOUR_NAMES, Judge
from trainer_core.embedded.shapes import CONCEPT, SCRIBBLE, SHAPES, random_scene

from .common import Clock, pictures, to_pixels


def build_judge(out: Path, steps: int = 2500, batch: int = 64) -> None:
    """Trains the judge on drawn pictures, blurred, add_noise and shifted in brightness, and prints its accuracy."""
    from safetensors.torch import save_file

    torch.manual_seed(2)
    rng = random.Random(2)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        scenes = [random_scene(rng, rng.choice([*SHAPES, CONCEPT, CONCEPT, SCRIBBLE, SCRIBBLE])) for _ in range(count)]
        labels = [
            (
                CLASSES.index(s.shape if s.shape in CLASSES else "other"),
                COLOUR_NAMES.index(s.colour),
                COLOUR_NAMES.index(s.background),
            )
            for s in scenes
        ]
        return pictures(scenes, rng), torch.tensor(labels)

    judge = Judge()
    images, labels = drawn(16000)
    held_out, held_out_labels = drawn(2000)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    clock = Clock("judge")
    other = CLASSES.index("other")
    for step in range(steps):
        chosen = torch.randint(0, len(images), (batch,))
        pixels, target = to_pixels(images[chosen]), labels[chosen].clone()
        # two different shapes laid over each other are "other": a judge must not round half a star up to a star
        quarter = batch // 8
        pixels[:quarter] = 0.5 * (pixels[:quarter] + pixels[quarter : 2 * quarter])
        mixed = target[:quarter, 0] != target[quarter : 2 * quarter, 0]
        target[:quarter, 0] = torch.where(mixed, torch.tensor(other), target[:quarter, 0])
        if step % 2:
            pixels = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
        pixels = pixels + 0.05 * torch.randn_like(pixels) + 0.05 * torch.randn(len(pixels), 3, 1, 1)
        shape, colour, background = judge(pixels)
        loss = F.cross_entropy(shape, target[:, 0])
        loss = loss + F.cross_entropy(colour[quarter:], target[quarter:, 1])
        loss = loss + F.cross_entropy(background[quarter:], target[quarter:, 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            with torch.no_grad():
                heads = judge(to_pixels(held_out))
            right = [(head.argmax(1) == held_out_labels[:, k]).float().mean().item() for k, head in enumerate(heads)]
            clock(step=step + 1, loss=f"{loss.item():.3f}", right=[round(value, 4) for value in right])
    save_file({key: value.half().contiguous() for key, value in judge.state_dict().items()}, out / "judge.safetensors")
