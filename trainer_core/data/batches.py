"""The order in which items are drawn, as a function of (seed, position): no state to save, none to lose.

A round holds every item that is drawn most often once, and the others in proportion (a set of half the weight: every
second item). Within a round the samples of a size are shuffled and cut into micro-batches, and the micro-batches of all
sizes are shuffled together. An epoch is one round, or as many as it takes for every item to come; what does not fill a
micro-batch is carried into the epoch's next round, and is a short one at its end.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..config import DatasetConfig
from ..errors import DatasetError
from ..randomness import permutation
from .scan import Sample

Kind = tuple[int | float | str, ...]
"""What all samples of a micro-batch share: width, height, adapter strength, regularization target, controls, and of
clips also how many frames they and their controls have."""

_LONGEST_EPOCH = 1 << 15
"""Draws. A set of little weight beside a large one is not waited for any longer."""
_BLOCK = 1024
"""Epochs whose lengths are found at once."""
_FINEST = 10**6
"""Largest denominator of a rate, so that exact arithmetic over a whole run fits 64 bits."""


class BatchOrder:
    """Which samples micro-batch number n of a run holds: of training sets, or of regularization sets.

    Micro-batch n is a regularization batch if floor((n + 1) · ratio) > floor(n · ratio), an exact share of them that
    does not depend on how many make up a step. Sets with the role validation are never drawn.
    """

    def __init__(
        self,
        datasets: Sequence[Sequence[Sample]],
        configs: Sequence[DatasetConfig],
        batch_size: int,
        seed: int,
        ratio: float,
    ) -> None:
        """Takes the samples of each data set; an empty list is a set that is not drawn.

        Raises:
            DatasetError: if the training sets hold no samples.
        """
        sets = [
            _Set(index, config, samples)
            for index, (samples, config) in enumerate(zip(datasets, configs, strict=True))
            if samples
        ]
        regularization = [one for one in sets if one.config.role == "regularization"]
        self._training = _Order([one for one in sets if one.config.role == "train"], batch_size, seed)
        self._regularization = _Order(regularization, batch_size, seed) if regularization else None
        self._ratio = Fraction(str(ratio)) if regularization else Fraction(0)

    def micro_batch(self, number: int) -> list[Sample]:
        """Micro-batch `number` (from 0) of the run: samples of one size and adapter strength."""
        before = math.floor(number * self._ratio)
        if self._regularization is not None and math.floor((number + 1) * self._ratio) > before:
            return self._regularization.micro_batch(before)
        return self._training.micro_batch(number - before)

    def epoch_length(self, epoch: int) -> int:
        """Number of training micro-batches in an epoch; it varies a little if weights are no multiples of another."""
        return self._training.epoch_length(epoch)


@dataclass(frozen=True)
class _Set:
    index: int
    config: DatasetConfig
    samples: Sequence[Sample]


@dataclass(frozen=True)
class _Row:
    """Samples of one set and kind that are drawn equally often, as an endless row of shuffles."""

    name: str
    samples: list[Sample]
    rate: Fraction
    """Draws of each sample in a round, at most 1."""

    def drawn(self, rounds: int) -> int:
        """How many draws there are in the first so many rounds."""
        return rounds * len(self.samples) * self.rate.numerator // self.rate.denominator


@dataclass(frozen=True)
class _Group:
    """All rows whose samples may share a micro-batch."""

    name: str
    rows: list[_Row]


class _Order:
    """The endless order of some sets."""

    def __init__(self, sets: Sequence[_Set], batch_size: int, seed: int) -> None:
        if not sets:
            raise DatasetError("no images to train on are left in any training set: add some, or hold out fewer")
        self._batch_size, self._seed = batch_size, seed
        self._groups = _grouped(sets)
        rows = [row for group in self._groups for row in group.rows]
        in_round = math.ceil(sum(len(row.samples) * row.rate for row in rows))
        self._rounds = min(math.ceil(1 / min(row.rate for row in rows)), max(1, _LONGEST_EPOCH // in_round))
        self._factors = np.array([len(row.samples) * row.rate.numerator for row in rows], np.int64)
        self._divisors = np.array([row.rate.denominator for row in rows], np.int64)
        self._group_starts = np.cumsum([0, *(len(group.rows) for group in self._groups[:-1])])
        self._block_starts = [0]
        self._laps: dict[str, tuple[int, list[int]]] = {}
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._starts = lru_cache(maxsize=2)(self._make_starts)

    def micro_batch(self, number: int) -> list[Sample]:
        while self._block_starts[-1] <= number:
            self._block_starts.append(self._block_starts[-1] + int(self._starts(len(self._block_starts) - 1)[-1]))
        block = bisect_right(self._block_starts, number) - 1
        starts, place = self._starts(block), number - self._block_starts[block]
        epoch = bisect_right(starts, place) - 1
        return self._epoch(block * _BLOCK + epoch)[place - int(starts[epoch])]

    def epoch_length(self, epoch: int) -> int:
        starts, place = self._starts(epoch // _BLOCK), epoch % _BLOCK
        return int(starts[place + 1] - starts[place])

    def _make_starts(self, block: int) -> NDArray[np.int64]:
        """Where the epochs of a block begin, counted from its first micro-batch, and where the last one ends."""
        rounds = np.arange(block * _BLOCK, (block + 1) * _BLOCK + 1, dtype=np.int64)[:, None] * self._rounds
        draws = np.diff(rounds * self._factors // self._divisors, axis=0)
        batches = -(-np.add.reduceat(draws, self._group_starts, axis=1) // self._batch_size)
        return np.concatenate([[0], np.cumsum(batches.sum(axis=1))])

    def _make_epoch(self, epoch: int) -> list[list[Sample]]:
        size, batches = self._batch_size, []
        waiting: list[list[Sample]] = [[] for _ in self._groups]
        last = (epoch + 1) * self._rounds - 1
        for number in range(epoch * self._rounds, last + 1):
            ready = []
            for k, group in enumerate(self._groups):
                drawn = [sample for row in group.rows for sample in self._drawn(row, number)]
                order = permutation(len(drawn), self._seed, "group", number, group.name)
                queue = waiting[k] + [drawn[place] for place in order]
                end = len(queue) if number == last else len(queue) - len(queue) % size
                ready += [queue[start : start + size] for start in range(0, end, size)]
                waiting[k] = queue[end:]
            batches += [ready[k] for k in permutation(len(ready), self._seed, "round", number)]
        return batches

    def _drawn(self, row: _Row, number: int) -> list[Sample]:
        """A row's share of a round: all of its samples come before one repeats."""
        places = (divmod(k, len(row.samples)) for k in range(row.drawn(number), row.drawn(number + 1)))
        return [row.samples[self._lap(row, lap)[place]] for lap, place in places]

    def _lap(self, row: _Row, lap: int) -> list[int]:
        known = self._laps.get(row.name)
        if known is None or known[0] != lap:
            known = self._laps[row.name] = lap, permutation(len(row.samples), self._seed, "lap", row.name, lap)
        return known[1]


def _grouped(sets: Sequence[_Set]) -> list[_Group]:
    """All samples by what a micro-batch must share, and then by set and by how often they are drawn."""
    found: dict[Kind, dict[tuple[int, int], list[Sample]]] = {}
    weights: dict[int, Fraction] = {}
    for one in sets:
        weights[one.index] = Fraction(str(one.config.weight))
        strength = one.config.adapter_strength
        target = one.config.regularization_target if one.config.role == "regularization" else ""
        for sample in one.samples:
            kind = (*sample.size, strength, target, len(sample.item.controls), *sample.shape[2:])
            found.setdefault(kind, {}).setdefault((one.index, sample.item.repeats), []).append(sample)
    most = max(weights[index] * repeats for rows in found.values() for index, repeats in rows)

    def rate(index: int, repeats: int) -> Fraction:
        share = weights[index] * repeats / most
        return max(share.limit_denominator(_FINEST), Fraction(1, _FINEST))

    return [
        _Group(
            str(kind),
            [
                _Row(f"{index} {repeats} {kind}", samples, rate(index, repeats))
                for (index, repeats), samples in sorted(rows.items(), key=lambda row: row[0])
            ],
        )
        for kind, rows in sorted(found.items())
    ]
