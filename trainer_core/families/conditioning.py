"""What a denoiser is given: latents as named streams, and what a sample is conditioned on.

The objective adds noise to streams and hands conditioning on; what is in it only the family knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

AUDIO = "audio"
"""The stream of a video's sound, where it has any."""
MAIN = "main"
"""The stream that every model has: the picture's, (C, H, W), or the video's, (C, T, H, W)."""

Streams = dict[str, "Tensor"]
"""Latents by stream: `main`, and for some models others such as `audio`, each of a rank of its own."""

TextEmbedding = dict[str, "Tensor"]
"""What a family's text encoders give for one prompt, by name: no batch dimension, unpadded, on the CPU."""

TimeIds = tuple[int, int, int, int, int, int]
"""What SDXL is told of a picture, in pixels: the original's height and width, from where down and across it was cropped
after scaling, height and width of what is shown (Podell et al. 2023, §2.2)."""


@dataclass(frozen=True)
class Stream:
    """One stream of a family's latents, as data."""

    name: str
    channels: int
    factor: int
    """Pixels per latent along an edge."""
    time_factor: int = 1
    """Frames per latent."""
    weight: float = 1.0
    """Of its loss in the sum over all streams."""


@dataclass(frozen=True)
class Conditioning:
    """What the prediction for one sample depends on beside noise and time."""

    prompt: str
    text: TextEmbedding | None = None
    """Of the prompt; None where text encoders are trained, which encode it anew in each step."""
    controls: tuple[Tensor, ...] = ()
    """What `Base.encode_controls` makes of control images: mostly normalised latents (C, h, w), of their own sizes; of
    video models (C, T, h, w)."""
    time_ids: TimeIds | None = None
    """None: a whole picture of the size that is drawn."""
    frame_rate: float | None = None
    """Frames per second, of video models."""
    first_frame: Tensor | None = None
    """Latents (C, T, h, w) as `Base.encode_first_frame` gives them, where the video goes on from an image."""


@dataclass(frozen=True)
class Collated:
    """The conditioning of a batch, on the device, as most models take it; families may have another form."""

    text: dict[str, Tensor]
    """With a batch dimension."""
    controls: tuple[Tensor, ...] = ()
    """(N, C, h, w)"""
    time_ids: Tensor | None = None
    """(N, 6), fp32"""
    guidance: Tensor | float | None = None
    """Value of a distilled model's guidance input, of all or of each (N,); None is what training uses."""


def each(function: Callable[..., Tensor], *streams: Streams) -> Streams:
    """A function applied to every stream."""
    return {name: function(*(one[name] for one in streams)) for name in streams[0]}
