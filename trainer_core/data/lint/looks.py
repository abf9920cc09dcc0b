"""What an image looks like, in 208 bytes, and which images look alike.

An image's difference hash (dhash, N. Krawetz 2013) says for 8 x 8 places whether brightness rises to the right, and for
8 x 8 whether it rises downwards: 128 bits that survive scaling, recompression and a change of brightness. Flat pictures
and drawings on white have few edges to hash, so what the hash calls alike counts only if the colours of an 8 x 8
thumbnail agree too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ...content import read_once
from ..header import TURNS, Header, opened, orientation, read_header
from ..images import load_image

if TYPE_CHECKING:
    import numpy as np

_GRID = 8
_EDGE = _GRID * (_GRID + 1)
"""72 pixels: they divide into 8 as well as into 9 cells."""
_RISE = 2.0
"""Brightness must rise by more than this (of 255) for a bit: JPEG noise on a flat ground must not set any."""
_BITS = 2 * _GRID * _GRID
_MAX_DISTANCE = 12
"""Bits of 128 in which images that look alike may differ."""
_MAX_MEAN, _MAX_CELL = 16.0, 64
"""Colour difference (of 255) of two thumbnails: on average, and in the worst cell."""
_CHUNK = 1 << 22
"""Pairs that are compared at once; bounds the memory (16 MB)."""


@dataclass(frozen=True)
class Look(Header):
    """What an image looks like."""

    bits: bytes
    """128 bits of difference hash, 16 bytes."""
    mirrored_bits: bytes
    """The same of the image seen in a mirror."""
    thumbnail: bytes
    """8 x 8 x 3 mean colours, 192 bytes."""


@read_once
def look_at(path: Path, background: str = "white") -> Look:
    """Reads an image to its last byte, JPEGs at an eighth of their size, and says what it looks like.

    Raises:
        DatasetError: if it cannot be loaded for training either.
        UNREADABLE: as Pillow does for a broken image.
    """
    return look_of(read_header(path), _small(path, background))


def look_of(header: Header, small: Image.Image) -> Look:
    """What an image looks like whose `shrunk` picture is given."""
    import numpy as np

    pixels = np.asarray(small, np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    thumbnail = pixels.reshape(_GRID, _GRID + 1, _GRID, _GRID + 1, 3).mean((1, 3)).round().astype(np.uint8)
    return Look(header.width, header.height, header.transparent, _hash(grey), _hash(grey[:, ::-1]), thumbnail.tobytes())


class Looks:
    """The looks of many images, side by side, for comparison."""

    def __init__(self, looks: list[Look]) -> None:
        import numpy as np

        self._count = len(looks)
        self._signs = _signs(b"".join(look.bits for look in looks))
        self._mirrored = _signs(b"".join(look.mirrored_bits for look in looks))
        flat = np.frombuffer(b"".join(look.thumbnail for look in looks), np.uint8)
        self._thumbnails = flat.reshape(self._count, _GRID, _GRID, 3)

    def groups(self) -> list[list[int]]:
        """Images that look alike, each group in order; alike is handed on: a is like b, b like c, so all three."""
        import numpy as np

        labels = np.arange(self._count)
        for row, columns in self._near(self._signs):
            others = columns[columns > row]
            others = others[labels[others] != labels[row]]
            for label in np.unique(labels[self._confirmed(row, others, False)]):
                labels[labels == label] = labels[row]
        return _grouped(labels.tolist())

    def mirrored_pairs(self, among: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """Pairs (i < j) of which one looks like the other in a mirror, and not as it is; among some images, or all."""
        chosen = set(range(self._count) if among is None else among)
        pairs = []
        for row, columns in self._near(self._mirrored):
            if row in chosen:
                mirrored = self._confirmed(row, columns[columns > row], True)
                alike = set(self._confirmed(row, mirrored, False).tolist())
                pairs += [(row, j) for j in mirrored.tolist() if j in chosen and j not in alike]
        return pairs

    def _near(self, probes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """For each image that has any: the images within the distance of its probe, itself among them or not."""
        import numpy as np

        rows = max(1, _CHUNK // max(1, self._count))
        for start in range(0, self._count, rows):
            # of +1 and -1: the product is 128 - 2 · distance, and a matrix product is the quickest way to all of them
            near = probes[start : start + rows] @ self._signs.T >= _BITS - 2 * _MAX_DISTANCE
            for row in np.flatnonzero(near.any(1)):
                yield start + int(row), np.flatnonzero(near[row])

    def _confirmed(self, row: int, columns: np.ndarray, mirrored: bool) -> np.ndarray:
        """Those columns whose thumbnails agree with the row's."""
        import numpy as np

        if not len(columns):
            return columns
        own = self._thumbnails[row].astype(np.int16)
        if mirrored:
            own = own[:, ::-1]
        difference = np.abs(self._thumbnails[columns].astype(np.int16) - own)
        alike = (difference.mean((1, 2, 3)) <= _MAX_MEAN) & (difference.max((1, 2, 3)) <= _MAX_CELL)
        return columns[alike]


def _small(path: Path, background: str) -> Image.Image:
    """An image as it is seen, shrunk to 72 x 72 RGB."""
    with opened(path) as image:
        if image.mode in {"RGB", "L"} and not image.has_transparency_data:
            turned = orientation(image)
            image.draft(image.mode, (_EDGE, _EDGE))
            small = shrunk(image)
            return small.transpose(TURNS[turned]) if turned in TURNS else small
    return shrunk(load_image(path, background))


def shrunk(image: Image.Image) -> Image.Image:
    """72 x 72 RGB; whole pixels are averaged first, which is several times as fast."""
    factor = max(1, min(image.size) // (2 * _EDGE))
    return image.reduce(factor).convert("RGB").resize((_EDGE, _EDGE), Image.Resampling.BILINEAR)


def _hash(grey: np.ndarray) -> bytes:
    """Difference hash of 72 x 72 grey values: 64 bits along rows, 64 along columns."""
    import numpy as np

    def rises(values: np.ndarray) -> np.ndarray:
        cells = values.reshape(_GRID, _GRID + 1, _GRID + 1, _GRID).mean((1, 3))
        return np.diff(cells, axis=1) > _RISE

    return np.packbits(np.stack([rises(grey), rises(grey.T)])).tobytes()


def _signs(hashes: bytes) -> np.ndarray:
    """Hashes as rows of 128 values, +1 for a set bit and -1 for another."""
    import numpy as np

    bits = np.unpackbits(np.frombuffer(hashes, np.uint8).reshape(-1, _BITS // 8), axis=1)
    return bits.astype(np.float32) * 2 - 1


def _grouped(labels: list[int]) -> list[list[int]]:
    """Positions of equal labels, where there are at least two."""
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    return [group for group in groups.values() if len(group) > 1]
