"""The judge: a small classifier that says which shape, colour and background a picture shows.

It learns from drawn pictures only, never from generated ones, so that it cannot be lenient with a model's mistakes. Its
shape classes end with `other` (scribbles, mixtures of two shapes): what a picture shows may be nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from .shapes import COLOURS, CONCEPT, SHAPES

CLASSES = (*SHAPES, CONCEPT, "other")
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Verdict:
    """What one picture shows, in the words of the captions."""

    shape: str
    colour: str
    background: str


class Judge(nn.Module):
    """Four strided convolutions and three linear heads; input (N, 3, 64, 64) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.shape = nn.Linear(1024, len(CLASSES))
        self.colour = nn.Linear(1024, len(COLOUR_NAMES))
        self.background = nn.Linear(1024, len(COLOUR_NAMES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of shape (N, classes), (N, colours), (N, colours)."""
        features = self.features(pixels)
        return self.shape(features), self.colour(features), self.background(features)

    @torch.no_grad()
    def verdicts(self, pixels: Tensor) -> list[Verdict]:
        """Judges pictures (N, 3, 64, 64) in [-1, 1]."""
        shape, colour, background = (head.argmax(1).tolist() for head in self(pixels.float().cpu()))
        return [
            Verdict(CLASSES[s], COLOUR_NAMES[c], COLOUR_NAMES[b])
            for s, c, b in zip(shape, colour, background, strict=True)
        ]


@lru_cache(maxsize=1)
def load_judge(path: Path) -> Judge:
    """The judge from its safetensors file, on the CPU in fp32."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)
