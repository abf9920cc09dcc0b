"""Pictures between files, PIL and ComfyUI's IMAGE: (N, H, W, 3), float32 in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

_GAP = 4
"""Pixels between pictures of a sheet."""


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """(H, W, 3)."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)


def to_batch(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """(N, H, W, 3) of pictures of one size."""
    return torch.stack([to_tensor(picture) for picture in pictures])


def from_batches(batches: Iterable[torch.Tensor]) -> list[Image.Image]:
    """The pictures of a list of IMAGEs."""
    images = [image for batch in batches for image in (batch if batch.ndim == 4 else batch[None])]
    return [Image.fromarray((image.cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()) for image in images]


def from_masks(batches: Iterable[torch.Tensor]) -> list[Image.Image]:
    """The masks of a list of MASKs, (N, H, W) or (H, W), as grey pictures: white is 1."""
    masks = [mask for batch in batches for mask in (batch if batch.ndim == 3 else batch[None])]
    return [Image.fromarray((mask.cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()) for mask in masks]


def opened(path: Path) -> Image.Image:
    """A file's picture in RGB, upright."""
    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def shrunk(picture: Image.Image, edge: int = 256) -> Image.Image:
    """A picture in at most `edge` pixels."""
    small = picture.copy()
    small.thumbnail((edge, edge))
    return small


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in one, left and right."""
    return sheet([left, right], columns=2)


def sheet(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Pictures in rows, in cells of the largest one's size, on white."""
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for k, picture in enumerate(pictures):
        whole.paste(picture, ((k % columns) * (width + _GAP), (k // columns) * (height + _GAP)))
    return whole
