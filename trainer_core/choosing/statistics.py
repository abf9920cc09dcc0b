"""An embedding that needs no model: simple features of pictures, in units of how the training pictures vary.

It knows colours, their places, and edges, and nothing of what a picture shows: where CLIP or DINO is at hand, that is
the better judge (`vision.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_SIZE, _GRID, _ANGLES = 64, 8, 8
"""Pixels that are looked at in each direction, cells of them, and directions of edges that are told apart."""


def features(pictures: Sequence[Image.Image]) -> Tensor:
    """(N, 704): the mean colour of each of 8 x 8 cells, and how strong edges of 8 directions are in it.

    The second is a histogram of oriented gradients (Dalal and Triggs 2005) over angles without sign.
    """
    import numpy as np
    import torch
    import torch.nn.functional as functional
    from PIL import Image

    small = [
        np.asarray(one.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BOX, reducing_gap=None))
        for one in pictures
    ]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
    cell = _SIZE // _GRID
    colours = functional.avg_pool2d(pixels, cell)
    light = functional.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    across, down = light[:, 1:-1, 2:] - light[:, 1:-1, :-2], light[:, 2:, 1:-1] - light[:, :-2, 1:-1]
    angle = torch.atan2(down, across).remainder(torch.pi) / torch.pi * _ANGLES
    angles = functional.one_hot(angle.long().clamp(max=_ANGLES - 1), _ANGLES).permute(0, 3, 1, 2)
    edges = functional.avg_pool2d(angles * (across.square() + down.square()).sqrt()[:, None], cell)
    return torch.cat([colours.flatten(1), edges.flatten(1)], dim=1)


def shrinkage(centred: Tensor) -> float:
    """How far the covariance of rows (N, D) is best drawn towards a multiple of the identity, in [0, 1].

    Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices: β² / δ², with
    δ² = ‖S - m I‖² and β² = min(δ², Σ ‖x xᵀ - S‖² / N²), in Frobenius' norm; m is the mean of S's diagonal.
    """
    count, size = centred.shape
    covariance = centred.T @ centred / count
    squared = float(covariance.square().sum())
    off = squared - float(covariance.diagonal().sum()) ** 2 / size
    error = (float(centred.square().sum(1).square().sum()) - count * squared) / count**2
    return min(1.0, error / off) if off > 0 else 1.0


class Statistics:
    """Features, whitened: mean 0 and, as far as so few pictures tell, covariance 1 over the reference pictures."""

    name = "the data's own statistics"

    def __init__(self, reference: Sequence[Image.Image]) -> None:
        """`reference` are the training pictures."""
        import torch

        found = features(reference).double()
        self._mean = found.mean(0)
        colours, edges = (found - self._mean).split([3 * _GRID**2, _ANGLES * _GRID**2], dim=1)
        # both kinds count the same, whatever their units; a reference of equal pictures has no scale
        units = [max(float(kind.square().mean()) ** 0.5, 1e-3) for kind in (colours, edges)]
        self._units = torch.cat(
            [torch.full((kind.shape[1],), unit) for kind, unit in zip((colours, edges), units, strict=True)]
        )
        centred = (found - self._mean) / self._units
        share, covariance = shrinkage(centred), centred.T @ centred / len(found)
        level = max(float(covariance.diagonal().mean()), 1e-6)
        values, vectors = torch.linalg.eigh(
            (1 - share) * covariance + share * level * torch.eye(len(covariance), dtype=covariance.dtype)
        )
        self._whitening = vectors * values.clamp(min=1e-3 * level).rsqrt()

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, D), fp32."""
        centred = (features(pictures).double() - self._mean) / self._units
        return (centred @ self._whitening).float()
