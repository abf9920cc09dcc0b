"""A view: one file as one variant shows it in a bucket; of a clip, some of its frames.

A target, its mask and its control images have the same view but for the file, which is what keeps them aligned.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import DatasetError
from .buckets import Size, cover_box
from .clips.decode import pictures, sound
from .clips.excerpt import Excerpt
from .clips.media import content_of
from .images import at_own_size, decode_alpha, decode_image, flipped, read_image, to_bucket
from .masks import area_average, time_average
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
PIXELS_AHEAD = 1 << 26
"""Pixels of all of them together, where there is more than one: 800 MB."""


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
    excerpt: Excerpt | None = None
    """None where pixels have no time axis."""

    @property
    def parts(self) -> tuple[object, ...]:
        """What a cache key depends on, colour aside: not where the file lies, nor which number a crop has."""
        seen = (self.content, *self.target, *self.box, *self.size, self.variant.flip_x, self.variant.flip_y)
        moving = self.excerpt.parts if self.excerpt else ()
        return (*seen, *moving, "own size") if self.own_size else (*seen, *moving)

    @property
    def shape(self) -> tuple[int, ...]:
        """Width, height, and of what has a time axis also frames and samples of sound."""
        return (*self.size, len(self.excerpt.frames), self.excerpt.samples) if self.excerpt else self.size

    @property
    def still(self) -> View:
        """Of a clip its first frame alone."""
        return replace(self, excerpt=Excerpt(self.excerpt.clip, self.excerpt.frames[:1])) if self.excerpt else self

    @property
    def time_ids(self) -> TimeIds:
        """What SDXL is told of a picture; offsets are counted in the mirrored picture."""
        (width, height), (left, top, right, bottom) = self.target, self.box
        across, down = self.size[0] / (right - left), self.size[1] / (bottom - top)
        cut_left = width - right if self.variant.flip_x else left
        cut_top = height - bottom if self.variant.flip_y else top
        return height, width, round(cut_top * down), round(cut_left * across), self.size[1], self.size[0]

    def pixels(self) -> Tensor:
        """(3, H, W) in [-1, 1]; with a time axis (3, T, H, W).

        A control image of another aspect than its target shows its own centre, undistorted.

        Where it comes in its `own_size` it shows what the target shows, or all of it if it has another aspect.

        Raises:
            DatasetError: if the file is no good, or is not the one that was scanned.
        """
        colour = "#{:02x}{:02x}{:02x}".format(*self.background)
        return self._each(lambda data: decode_image(data, self.path, colour), colour, self._pixels)

    def sound(self, rate: int) -> Tensor:
        """(2, samples) in [-1, 1]; a picture's, and that of a clip without any, is silence.

        Raises:
            DatasetError: if it cannot be decoded.
        """
        import torch

        assert self.excerpt is not None
        if self.excerpt.clip is None:
            return torch.zeros(2, self.excerpt.samples)
        return sound(self.path, self.excerpt.clip, self.excerpt.begin, self.excerpt.samples, rate)

    def mask(self, cell: int, from_alpha: bool, frames_per_cell: int = 1) -> Tensor:
        """(1, H / cell, W / cell) in [0, 1]: a mask's brightness, or an image's own opacity, averaged over cells.

        Of a clip (1, T', H / cell, W / cell). What is transparent in a mask is black.

        Raises:
            DatasetError: if the file is no good, is not the one that was scanned, or has another shape than its image.
        """

        def still(data: bytes) -> Image.Image:
            return decode_alpha(data, self.path) if from_alpha else decode_image(data, self.path, "black")

        grids = self._each(still, None if from_alpha else "black", lambda image: self._grid(image, cell))
        return time_average(grids, frames_per_cell) if self.excerpt else grids

    def _each(
        self, still: Callable[[bytes], Image.Image], colour: str | None, seen: Callable[[Image.Image], Tensor]
    ) -> Tensor:
        """What is seen of the picture, or of each of the frames, stacked in their order along the second axis."""
        import torch

        if self.excerpt is None or self.excerpt.clip is None:
            whole = seen(still(self._read()))
            return whole[:, None] if self.excerpt else whole
        self._check()
        found = {
            number: seen(image) for number, image in pictures(self.path, self.excerpt.clip, self.excerpt.frames, colour)
        }
        return torch.stack([found[number] for number in self.excerpt.frames], dim=1)

    def _pixels(self, image: Image.Image) -> Tensor:
        box = self._box_in(image)
        if self.own_size:
            return at_own_size(image, box, self.variant.flip_x, self.variant.flip_y)
        box = box or cover_box(image.width, image.height, self.size)
        return to_bucket(image, self.size, box, self.variant.flip_x, self.variant.flip_y)

    def _grid(self, image: Image.Image, cell: int) -> Tensor:
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
        self._check(hashlib.sha256(data).hexdigest())
        return data

    def _check(self, content: str | None = None) -> None:
        """Whether the file is the one that was scanned: it would be cached under what it was before."""
        try:
            now = content or content_of(self.path)
        except OSError as error:
            raise DatasetError(f"{self.path}: cannot be read ({error.strerror or error}). Check the file") from None
        if now != self.content:
            raise DatasetError(f"{self.path}: was changed while the data was prepared. Start again")

    def _box_in(self, image: Image.Image) -> Box | None:
        """The box in an image that has the target's shape, maybe at another scale; None if it has another."""
        across, down = image.width / self.target[0], image.height / self.target[1]
        if abs(across / down - 1) > ASPECT_TOLERANCE:
            return None
        left, top, right, bottom = self.box
        return left * across, top * down, min(image.width, right * across), min(image.height, bottom * down)


def batches_of(views: Mapping[str, View]) -> Iterator[dict[str, View]]:
    """Views of one shape each, by key, as many at a time as `batch_size` says."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for key, view in views.items():
        by_shape.setdefault(view.shape, []).append(key)
    for shape, keys in by_shape.items():
        step = batch_size(shape)
        for start in range(0, len(keys), step):
            yield {key: views[key] for key in keys[start : start + step]}


def batch_size(shape: tuple[int, ...]) -> int:
    """How many views of a shape are encoded at a time."""
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // math.prod(shape[:3])))


def loaded(
    batches: Iterable[dict[str, View]], sample_rate: int | None = None
) -> Generator[tuple[list[str], Tensor, Tensor | None], None, None]:
    """Keys, pixels (N, 3, …, H, W) and sound (N, 2, samples) of batches, decoded on threads while the encoder works.

    Close it to stop them.

    The last batch of a size is filled up with its last picture: libraries compute differently for another N, and an
    entry of the cache must not depend on what else was missing.

    Raises:
        DatasetError: as `View.pixels` does.
    """
    import torch

    with ThreadPoolExecutor(DECODERS) as pool:
        waiting: deque[tuple[dict[str, View], list[Future[tuple[Tensor, Tensor | None]]]]] = deque()
        ahead = iter(batches)

        def decoded(view: View) -> tuple[Tensor, Tensor | None]:
            return view.pixels(), view.sound(sample_rate) if sample_rate else None

        try:
            while True:
                while len(waiting) < BATCHES_AHEAD and sum(_pixels(one) for one, _ in waiting) < PIXELS_AHEAD:
                    if (batch := next(ahead, None)) is None:
                        break
                    waiting.append((batch, [pool.submit(decoded, view) for view in batch.values()]))
                if not waiting:
                    return
                batch, futures = waiting.popleft()
                found = [future.result() for future in futures]
                found += found[-1:] * (batch_size(next(iter(batch.values())).shape) - len(found))
                heard = [one for _, one in found if one is not None]
                yield list(batch), torch.stack([pixels for pixels, _ in found]), torch.stack(heard) if heard else None
        finally:
            pool.shutdown(cancel_futures=True)


def _pixels(batch: Mapping[str, View]) -> int:
    return sum(math.prod(view.shape[:3]) for view in batch.values())
