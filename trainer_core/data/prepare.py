"""Data sets ready to train on: scanned, put into buckets, encoded (from the cache where it can be)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import DatasetConfig, JobConfig
from ..errors import DatasetError
from ..files import sha256_of
from .buckets import bucket_sizes
from .cache import TensorCache, key_of
from .captions import variants
from .images import load_image, to_bucket
from .scan import Sample, scan

if TYPE_CHECKING:
    from torch import Tensor

    from ..families.base import Base, TextEmbedding

_MEMORY_LIMIT = 1 << 30
"""Bytes of cache entries that are kept in memory."""
_TRANSFORM_VERSION = 1
"""Raise when the same file and size would give other pixels."""

Progress = Callable[[str, int, int], None]
"""(what, done, total); raises to stop the work."""


@dataclass(frozen=True)
class Latents:
    """Distribution of a picture's normalised latents: mean and standard deviation (C, H, W), fp32."""

    mean: Tensor
    spread: Tensor


class PreparedData:
    """What the loop reads: samples by data set, their latents, and the embedding of any text that was announced."""

    def __init__(self, job: JobConfig, base: Base, cache: TensorCache) -> None:
        """Scans the folders and sorts images into buckets; encodes nothing yet.

        Raises:
            DatasetError: if a data set cannot be trained on.
        """
        self.datasets, self._base, self._cache, self._seed = job.datasets, base, cache, job.train.seed
        self.samples = [samples_of(dataset, base.spec.bucket_divisor, k) for k, dataset in enumerate(job.datasets)]
        self._file_sums = {s.item.path: sha256_of(s.item.path) for samples in self.samples for s in samples}
        self._memory: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._memory_used = 0

    def digest(self) -> str:
        """Digest of all files and captions, for the LoRA's metadata; says nothing about where they lie."""
        lines = [
            f"{s.dataset}/{s.item.key}:{self._file_sums[s.item.path]}:{s.item.caption}"
            for group in self.samples
            for s in group
        ]
        return hashlib.sha256("\n".join(sorted(set(lines))).encode()).hexdigest()

    def texts_of(self, sample: Sample) -> list[str]:
        """All captions that a sample may be trained with."""
        return variants(sample.item.caption, self.datasets[sample.dataset], self._seed, sample.item.key)

    # text

    def encode_texts(self, extra: Iterable[str], progress: Progress, batch: int = 8) -> None:
        """Embeds every caption, and `extra` texts; loads the text encoders only if something is missing."""
        wanted = {text for group in self.samples for sample in group for text in self.texts_of(sample)} | set(extra)
        self._text_mark = self._base.text_fingerprint()
        missing = sorted(text for text in wanted if self._entry(self._text_key(text)) is None)
        if not missing:
            return
        progress("loading the text encoders", 0, len(missing))
        self._base.load_text_encoders()
        for start in range(0, len(missing), batch):
            progress("encoding captions", start, len(missing))
            texts = missing[start : start + batch]
            for text, embedding in zip(texts, self._base.encode_prompts(texts), strict=True):
                self._store(self._text_key(text), embedding)
        self._base.free_text_encoders()
        progress("encoding captions", len(missing), len(missing))

    def text(self, text: str) -> TextEmbedding:
        """The embedding of a text that `encode_texts` has seen."""
        entry = self._entry(self._text_key(text))
        if entry is None:
            raise DatasetError(f"the cached embedding of {text!r} is gone; resume the run to make it again")
        return entry

    def _text_key(self, text: str) -> str:
        return key_of("text", self._base.spec.name, self._text_mark, text)

    # pixels

    def encode_images(self, progress: Progress) -> None:
        """Encodes every sample, mirrored too where flips are on; loads the VAE only if something is missing."""
        self._pixel_mark = self._base.pixel_fingerprint()
        wanted = [
            (sample, flip)
            for dataset, group in zip(self.datasets, self.samples, strict=True)
            for sample in group
            for flip in ((False, True) if dataset.flip_x else (False,))
        ]
        missing = [pair for pair in wanted if self._entry(self._pixel_key(*pair)) is None]
        if not missing:
            return
        progress("loading the VAE", 0, len(missing))
        self._base.load_vae()
        for done, (sample, flip) in enumerate(missing):
            progress("encoding images", done, len(missing))
            pixels = to_bucket(load_image(sample.item.path), sample.size, flip)
            mean, spread = self._base.encode_pixels(pixels[None])
            self._store(self._pixel_key(sample, flip), {"mean": mean[0], "spread": spread[0]})
        self._base.free_vae()
        progress("encoding images", len(missing), len(missing))

    def latents(self, sample: Sample, flip: bool) -> Latents:
        """The latents of a sample that `encode_images` has seen."""
        entry = self._entry(self._pixel_key(sample, flip))
        if entry is None:
            raise DatasetError(f"the cached latents of {sample.item.key} are gone; resume the run to make them again")
        return Latents(entry["mean"], entry["spread"])

    def _pixel_key(self, sample: Sample, flip: bool) -> str:
        width, height = sample.size
        file_sum = self._file_sums[sample.item.path]
        return key_of(
            "pixels", _TRANSFORM_VERSION, self._base.spec.name, self._pixel_mark, file_sum, width, height, flip
        )

    # entries

    def _entry(self, key: str) -> dict[str, Tensor] | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        entry = self._cache.get(key)
        if entry is not None:
            self._remember(key, entry)
        return entry

    def _store(self, key: str, entry: dict[str, Tensor]) -> None:
        self._cache.put(key, entry)
        self._remember(key, entry)

    def _remember(self, key: str, entry: dict[str, Tensor]) -> None:
        self._memory[key] = entry
        self._memory_used += _bytes(entry)
        while self._memory_used > _MEMORY_LIMIT and len(self._memory) > 1:
            self._memory_used -= _bytes(self._memory.popitem(last=False)[1])


def samples_of(dataset: DatasetConfig, divisor: int, index: int = 0) -> list[Sample]:
    """A data set's images at each of their bucket sizes.

    Raises:
        DatasetError: if the folder cannot be trained on, or an image is smaller than one unit of the divisor.
    """
    samples = []
    for item in scan(dataset):
        try:
            sizes = bucket_sizes(item.width, item.height, dataset.resolutions, divisor)
        except ValueError as error:
            raise DatasetError(f"{item.path}: {error}. Remove or replace it") from None
        samples += [Sample(index, item, size) for size in sizes]
    return samples


def _bytes(entry: dict[str, Tensor]) -> int:
    return sum(value.nbytes for value in entry.values())
