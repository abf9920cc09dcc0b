"""The order in which items are drawn, as a function of (seed, position): no state to save, none to lose.

An epoch holds every data set `weight` times. Within an epoch each bucket is shuffled and cut into micro-batches of one
size (the last of a bucket may be short), and the micro-batches of all buckets are shuffled together.
"""

from __future__ import annotations

from functools import lru_cache

from ..randomness import permutation
from .buckets import Size
from .scan import Sample


class BatchOrder:
    """Which samples micro-batch number n of a run holds."""

    def __init__(self, datasets: list[list[Sample]], weights: list[float], batch_size: int, seed: int) -> None:
        self._datasets, self._batch_size, self._seed = datasets, batch_size, seed
        self._draws = [max(1, round(len(s) * w)) for s, w in zip(datasets, weights, strict=True)]
        self._starts = [0]
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def micro_batch(self, number: int) -> list[Sample]:
        """Micro-batch `number` (from 0) of the run."""
        epoch = self._epoch_of(number)
        return self._epoch(epoch)[number - self._starts[epoch]]

    def epoch_length(self, epoch: int) -> int:
        """Number of micro-batches in an epoch; it changes a little from epoch to epoch if weights are not whole."""
        return len(self._epoch(epoch))

    def _epoch_of(self, number: int) -> int:
        while self._starts[-1] <= number:
            epoch = len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._epoch(epoch)))
        low, high = 0, len(self._starts) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._starts[middle] <= number else (low, middle)
        return low

    def _make_epoch(self, epoch: int) -> list[list[Sample]]:
        buckets: dict[Size, list[Sample]] = {}
        for index, samples in enumerate(self._datasets):
            for sample in self._drawn(index, samples, epoch):
                buckets.setdefault(sample.size, []).append(sample)
        batches = []
        for size in sorted(buckets):
            samples = buckets[size]
            shuffled = [samples[k] for k in permutation(len(samples), self._seed, "bucket", epoch, *size)]
            batches += [shuffled[k : k + self._batch_size] for k in range(0, len(shuffled), self._batch_size)]
        return [batches[k] for k in permutation(len(batches), self._seed, "epoch", epoch)]

    def _drawn(self, index: int, samples: list[Sample], epoch: int) -> list[Sample]:
        """A data set's share of an epoch, from an endless row of shuffles: all come before one repeats."""
        count, size = self._draws[index], len(samples)
        drawn = []
        for position in range(epoch * count, (epoch + 1) * count):
            lap, place = divmod(position, size)
            drawn.append(samples[self._lap(index, size, lap)[place]])
        return drawn

    @lru_cache(maxsize=8)  # noqa: B019 - an order lives as long as its run
    def _lap(self, index: int, size: int, lap: int) -> list[int]:
        return permutation(size, self._seed, "lap", index, lap)
