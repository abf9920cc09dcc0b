"""What the stages share: drawn pictures as tensors, saving, a line of progress."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer_core.embedded.shapes import Scene, draw

TOKENS = 16
"""Length of a caption in tokens, padding included."""
LATENT_SHIFT, LATENT_SCALE = 0.1159, 0.3611
"""FLUX.1's own constants: the VAE is trained towards them, so that ComfyUI's FLUX latent format fits unchanged."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pictures(scenes: list[Scene], rng: random.Random) -> Tensor:
    """Draws scenes to (N, 3, 64, 64) uint8."""
    return torch.from_numpy(np.stack([np.asarray(draw(scene, rng)) for scene in scenes])).permute(0, 3, 1, 2)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 → float in [-1, 1]."""
    return images.float() / 127.5 - 1


def save(module: Any, folder: Path) -> None:
    """Writes a diffusers or transformers model as fp16 safetensors."""
    module.half().save_pretrained(folder, safe_serialization=True)
    module.float()
    if type(module).__name__ == "CLIPTextModel":
        prefix_clip_keys(folder / "model.safetensors")


def prefix_clip_keys(path: Path) -> None:
    """Gives CLIP's weights the `text_model.` prefix that every published CLIP has.

    transformers 5 saves without it, and then 4 would silently start from random weights.
    """
    from safetensors.torch import load_file, save_file

    weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


class Clock:
    """Prints a line of progress with the seconds since the start."""

    def __init__(self, stage: str) -> None:
        self.stage, self.start = stage, time.monotonic()

    def __call__(self, **values: object) -> None:
        shown = " ".join(f"{key}={value}" for key, value in values.items())
        print(f"[{self.stage} {time.monotonic() - self.start:6.0f}s] {shown}", flush=True)
