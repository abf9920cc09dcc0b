"""The order of the data: nothing is forgotten, nothing comes twice early, any batch may be asked for."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.data.batches import BatchOrder
from trainer_core.data.scan import Item, Sample

SIZES = [(64, 64), (96, 48), (48, 96)]


def samples(counts: list[int], dataset: int = 0) -> list[Sample]:
    """So many samples of each size."""
    return [
        Sample(dataset, Item(Path(f"{k}.png"), f"{size[0]}_{k}.png", *size, "a"), size)
        for size, count in zip(SIZES, counts, strict=False)
        for k in range(count)
    ]


def epoch(order: BatchOrder, number: int) -> list[list[Sample]]:
    start = sum(order.epoch_length(k) for k in range(number))
    return [order.micro_batch(start + k) for k in range(order.epoch_length(number))]


counts = st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any)
batch_sizes = st.integers(1, 7)
seeds = st.integers(0, 2**63 - 1)


@given(counts, batch_sizes, seeds)
def test_every_item_comes_before_any_comes_again(many: list[int], batch_size: int, seed: int) -> None:
    """A plain data set: each epoch is a shuffle of it, batches of one size, all full but a size's last."""
    given_samples = samples(many)
    order = BatchOrder([given_samples], [1.0], batch_size, seed)
    for number in range(3):
        batches = epoch(order, number)
        drawn = [sample.key for batch in batches for sample in batch]
        assert sorted(drawn) == sorted(sample.key for sample in given_samples)
        for batch in batches:
            assert len({sample.size for sample in batch}) == 1
            assert 1 <= len(batch) <= batch_size
        for size, count in zip(SIZES, many, strict=False):
            of_size = sorted((len(b) for b in batches if b[0].size == size), reverse=True)
            assert of_size == [batch_size] * (count // batch_size) + (
                [count % batch_size] if count % batch_size else []
            )


@given(counts, batch_sizes, seeds, st.floats(0.05, 3.5))
def test_no_item_gets_ahead_of_another_whatever_the_weight(
    many: list[int], batch_size: int, seed: int, weight: float
) -> None:
    """After each epoch the counts of a data set's items differ by one at most."""
    given_samples = samples(many)
    order = BatchOrder([given_samples], [weight], batch_size, seed)
    drawn: Counter[str] = Counter({sample.key: 0 for sample in given_samples})
    for number in range(8):
        drawn.update(sample.key for batch in epoch(order, number) for sample in batch)
        assert max(drawn.values()) - min(drawn.values()) <= 1


@pytest.mark.parametrize(("weights", "shares"), [([1, 1], (10, 4)), ([1, 2.5], (10, 10)), ([0.5, 1], (5, 4))])
def test_weights_are_shares_of_an_epoch(weights: list[float], shares: tuple[int, int]) -> None:
    order = BatchOrder([samples([10], 0), samples([4], 1)], weights, 3, seed=1)
    for number in range(4):
        drawn = Counter(sample.dataset for batch in epoch(order, number) for sample in batch)
        assert (drawn[0], drawn[1]) == shares


def test_a_small_weight_still_lets_every_item_come() -> None:
    """A tenth of five items is half an item: one comes in each epoch, and all have come after five."""
    order = BatchOrder([samples([20], 0), samples([5], 1)], [1, 0.1], 4, seed=1)
    rare = [[s.key for batch in epoch(order, k) for s in batch if s.dataset == 1] for k in range(5)]
    assert [len(keys) for keys in rare] == [1] * 5
    assert len({keys[0] for keys in rare}) == 5


@given(counts, batch_sizes, seeds, st.floats(0.3, 2.5), st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_a_batch_is_the_same_whenever_it_is_asked_for(
    many: list[int], batch_size: int, seed: int, weight: float, numbers: list[int]
) -> None:
    def make() -> BatchOrder:
        return BatchOrder([samples(many), samples([3], 1)], [weight, 1.0], batch_size, seed)

    in_order, jumping = make(), make()
    expected = [in_order.micro_batch(k) for k in range(61)]
    assert [jumping.micro_batch(k) for k in numbers] == [expected[k] for k in numbers]


def test_epochs_seeds_and_data_sets_are_shuffled_apart() -> None:
    def keys(order: BatchOrder, first: int, dataset: int = 0) -> list[str]:
        drawn = (s for k in range(100) for s in order.micro_batch(first + k) if s.dataset == dataset)
        return [sample.item.key for sample in islice(drawn, 30)]

    one = BatchOrder([samples([30])], [1], 1, seed=1)
    assert keys(one, 0) != keys(one, 30), "the second epoch is another shuffle"
    assert keys(one, 0) != keys(BatchOrder([samples([30])], [1], 1, seed=2), 0)
    both = BatchOrder([samples([30], 0), samples([30], 1)], [1, 1], 1, seed=1)
    assert keys(both, 0, 0) != keys(both, 0, 1)


def test_sizes_are_mixed_within_an_epoch() -> None:
    """Not all squares first: the buckets' batches are shuffled together."""
    order = BatchOrder([samples([20, 20])], [1], 2, seed=1)
    sizes = [order.micro_batch(k)[0].size for k in range(20)]
    assert 3 <= sum(a != b for a, b in pairwise(sizes)) <= 18


def test_which_items_share_a_batch_changes() -> None:
    order = BatchOrder([samples([8])], [1], 4, seed=1)
    together = {frozenset(s.key for s in batch) for k in range(10) for batch in epoch(order, k)}
    assert len(together) > 10


def test_one_item_alone_fills_a_run() -> None:
    order = BatchOrder([samples([1])], [1], 4, seed=1)
    assert [len(order.micro_batch(k)) for k in (0, 1, 1000)] == [1, 1, 1]
