"""A view: one file as one variant shows it in a bucket.

A target, its mask and its control images have the same view but for the file, which is what keeps them aligned.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import DatasetError
from .buckets import Size, cover_box
from .images import at_own_size, decode_alpha, decode_image, flipped, read_image, to_bucket
from .masks import area_average
from .variants import Box, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from ..families.conditioning import TimeIds

ASPECT_TOLERANCE = 0.02
"""Two pictures whose aspects differ by less have the same: rounding when one was scaled moves it by a pixel."""
PIXELS_AT_ONCE = 1 << 20
"""Pixels that the VAE encodes at a time: one picture of 1024x1024, four of 512x512."""
MOST_AT_ONCE = 8
DECODERS = 4
"""Threads that decode."""
BATCHES_AHEAD = 4
"""Batches that are decoded or being decoded, the one that is encoded included."""


@dataclass(frozen=True)
class View:
    """What is seen of a file: all of it that decides its latents."""

    path: Path
    content: str
    """Digest of the file's bytes."""
    target: Size
    """Size of the picture that is trained on; `box` is a part of that one."""
    box: Box
    size: Size
    variant: Variant
    background: tuple[int, int, int]
    """Colour behind what is transparent; masks have none."""
    own_size: bool = False
    """Of a control image: in its own size, and whole if it has another aspect than the target."""

    @property
    def parts(self) -> tuple[object, ...]:
        """What a cache key depends on, colour aside: not where the file lies, nor which number a crop has."""
        seen = (self.content, *self.target, *self.box, *self.size, self.variant.flip_x, self.variant.flip_y)
        return (*seen, "own size") if self.own_size else seen

    @property
    def time_ids(self) -> TimeIds:
        """What SDXL is told of a picture; offsets are counted in the mirrored picture."""
        (width, height), (left, top, right, bottom) = self.target, self.box
        across, down = self.size[0] / (right - left), self.size[1] / (bottom - top)
        cut_left = width - right if self.variant.flip_x else left
        cut_top = height - bottom if self.variant.flip_y else top
        return height, width, round(cut_top * down), round(cut_left * across), self.size[1], self.size[0]

    def pixels(self) -> Tensor:
        """(3, H, W) in [-1, 1]. A control image of another aspect than its target shows its own centre, undistorted.

        Where it comes in its `own_size` it shows what the target shows, or all of it if it has another aspect.

        Raises:
            DatasetError: if the file is no good, or is not the one that was scanned.
        """
        image = decode_image(self._read(), self.path, "#{:02x}{:02x}{:02x}".format(*self.background))
        box = self._box_in(image)
        if self.own_size:
            return at_own_size(image, box, self.variant.flip_x, self.variant.flip_y)
        box = box or cover_box(image.width, image.height, self.size)
        return to_bucket(image, self.size, box, self.variant.flip_x, self.variant.flip_y)

    def mask(self, cell: int, from_alpha: bool) -> Tensor:
        """(1, H / cell, W / cell) in [0, 1]: a mask's brightness, or an image's own opacity, averaged over cells.

        What is transparent in a mask is black.

        Raises:
            DatasetError: if the file is no good, is not the one that was scanned, or has another shape than its image.
        """
        data = self._read()
        image = decode_alpha(data, self.path) if from_alpha else decode_image(data, self.path, "black")
        box = self._box_in(image)
        if box is None:
            raise DatasetError(
                f"{self.path}: the mask has {image.width}x{image.height} pixels and its image "
                f"{self.target[0]}x{self.target[1]}, which is another shape. Make the mask from the image as it is now"
            )
        grid = area_average(image, box, (self.size[0] // cell, self.size[1] // cell))
        return flipped(grid, self.variant.flip_x, self.variant.flip_y)

    def _read(self) -> bytes:
        data = read_image(self.path)
        if hashlib.sha256(data).hexdigest() != self.content:  # it would be cached under what it was before
            raise DatasetError(f"{self.path}: was changed while the data was prepared. Start again")
        return data

    def _box_in(self, image: Image.Image) -> Box | None:
        """The box in an image that has the target's shape, maybe at another scale; None if it has another."""
        across, down = image.width / self.target[0], image.height / self.target[1]
        if abs(across / down - 1) > ASPECT_TOLERANCE:
            return None
        left, top, right, bottom = self.box
        return left * across, top * down, min(image.width, right * across), min(image.height, bottom * down)


def batches_of(views: Mapping[str, View]) -> Iterator[dict[str, View]]:
    """Views of one size each, by key, as many at a time as `batch_size` says."""
    by_size: dict[Size, list[str]] = {}
    for key, view in views.items():
        by_size.setdefault(view.size, []).append(key)
    for size, keys in by_size.items():
        step = batch_size(size)
        for start in range(0, len(keys), step):
            yield {key: views[key] for key in keys[start : start + step]}


def batch_size(size: Size) -> int:
    """How many pictures of a size are encoded at a time."""
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (size[0] * size[1])))


def loaded(batches: Iterable[dict[str, View]]) -> Generator[tuple[list[str], Tensor], None, None]:
    """Keys and pixels (N, 3, H, W) of batches, decoded on threads while the encoder works; close it to stop them.

    The last batch of a size is filled up with its last picture: libraries compute differently for another N, and an
    entry of the cache must not depend on what else was missing.

    Raises:
        DatasetError: as `View.pixels` does.
    """
    import torch

    with ThreadPoolExecutor(DECODERS) as pool:
        waiting: deque[tuple[list[str], list[Future[Tensor]]]] = deque()
        ahead = iter(batches)
        try:
            while True:
                for batch in islice(ahead, BATCHES_AHEAD - len(waiting)):
                    waiting.append((list(batch), [pool.submit(view.pixels) for view in batch.values()]))
                if not waiting:
                    return
                keys, futures = waiting.popleft()
                pixels = [future.result() for future in futures]
                filled = [*pixels, *pixels[-1:] * (batch_size((pixels[0].shape[2], pixels[0].shape[1])) - len(pixels))]
                yield keys, torch.stack(filled)
        finally:
            pool.shutdown(cancel_futures=True)
