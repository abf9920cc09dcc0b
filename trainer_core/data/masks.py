"""Masks → weights of the loss on the latents' grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from .buckets import Size
from .variants import Box

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def area_average(mask: Image.Image, box: Box, grid: Size) -> Tensor:
    """A part of a grey image averaged over each cell of a grid: (1, rows, columns), 0 for black to 1 for white.

    Exact: a pixel on the border between two cells counts in each by the share of it that lies there, so that a mask's
    total weight and position are kept whatever the scale.
    """
    import numpy as np
    import torch

    left, top, right, bottom = box
    values = np.asarray(mask.convert("L"), np.float32) / 255
    rows, columns = _shares(top, bottom, grid[1], mask.height), _shares(left, right, grid[0], mask.width)
    return torch.from_numpy(rows @ values @ columns.T)[None].clamp(0, 1)


def time_average(masks: Tensor, step: int) -> Tensor:
    """Masks of frames (1, T, H, W) averaged as a video's latents hold them: the first alone, then `step` at a time."""
    import torch

    rest = [part.mean(1, keepdim=True) for part in masks[:, 1:].split(step, dim=1)] if masks.shape[1] > 1 else []
    return torch.cat([masks[:, :1], *rest], dim=1)


def loss_weights(mask: Tensor, invert: bool, minimum: float) -> Tensor:
    """Weights of the loss with mean 1, so that a small mask does not make the loss small.

    Args:
        mask: how much each cell is trained on, 0 to 1.
        invert: train on the rest instead.
        minimum: weight of what is masked out, 1 being that of what is not; between them it is linear.

    Raises:
        ValueError: if nothing is left to train on.
    """
    weights = minimum + (1 - minimum) * (1 - mask if invert else mask)
    mean = weights.mean()
    if mean < 1e-4:
        raise ValueError("the mask leaves nothing to train on")
    return weights / mean


def without_first(weights: Tensor) -> Tensor:
    """Weights (1, T, h, w) of which the first frame's are 0, again with mean 1.

    Raises:
        ValueError: if nothing is left to train on.
    """
    rest = weights.clone()
    rest[:, :1] = 0
    return loss_weights(rest, invert=False, minimum=0.0)


def _shares(start: float, stop: float, cells: int, pixels: int) -> np.ndarray:
    """Which share of each cell each pixel covers: (cells, pixels), rows of sum 1."""
    import numpy as np

    edges = np.linspace(start, stop, cells + 1)
    lows, highs = edges[:-1, None], edges[1:, None]
    places = np.arange(pixels)[None]
    covered = np.clip(np.minimum(highs, places + 1) - np.maximum(lows, places), 0, None)
    return (covered / covered.sum(1, keepdims=True)).astype(np.float32)
