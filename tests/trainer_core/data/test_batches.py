"""The order of the data: nothing is forgotten, nothing comes twice early, any batch may be asked for."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_core.config import DatasetConfig
from trainer_core.data.batches import BatchOrder
from trainer_core.data.scan import Item, Sample
from trainer_core.errors import DatasetError

SIZES = [(64, 64), (96, 48), (48, 96)]


def samples(counts: list[int], dataset: int = 0, repeats: int = 1, controls: int = 0) -> list[Sample]:
    """So many samples of each size."""
    paths = tuple(Path(f"control_{k}.png") for k in range(controls))
    return [
        Sample(
            dataset, Item(Path(f"{k}.png"), f"{size[0]}_{repeats}_{k}.png", *size, ("a",), repeats, None, paths), size
        )
        for size, count in zip(SIZES, counts, strict=False)
        for k in range(count)
    ]


def config(**settings: Any) -> DatasetConfig:
    return DatasetConfig(folder="pictures", **settings)


def order_of(
    sets: list[list[Sample]], batch_size: int, seed: int = 1, ratio: float = 0.5, **settings: list[Any]
) -> BatchOrder:
    """An order of sets whose settings come as lists, such as weight=[1, 2]."""
    configs = [config(**{name: values[k] for name, values in settings.items()}) for k in range(len(sets))]
    return BatchOrder(sets, configs, batch_size, seed, ratio)


def epoch(order: BatchOrder, number: int) -> list[list[Sample]]:
    start = sum(order.epoch_length(k) for k in range(number))
    return [order.micro_batch(start + k) for k in range(order.epoch_length(number))]


counts = st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any)
batch_sizes = st.integers(1, 7)
seeds = st.integers(0, 2**63 - 1)
weights = st.floats(0.05, 3.5)


# --- one set ---------------------------------------------------------------------------------------------------------


@given(counts, batch_sizes, seeds, weights)
def test_every_item_comes_before_any_comes_again(many: list[int], batch_size: int, seed: int, weight: float) -> None:
    """One data set, whatever its weight: each epoch is a shuffle of it, batches of one size, full but a size's last."""
    given_samples = samples(many)
    order = order_of([given_samples], batch_size, seed, weight=[weight])
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


def test_epochs_seeds_and_data_sets_are_shuffled_apart() -> None:
    def keys(order: BatchOrder, first: int, dataset: int = 0) -> list[str]:
        drawn = (s for k in range(100) for s in order.micro_batch(first + k) if s.dataset == dataset)
        return [sample.item.key for sample in islice(drawn, 30)]

    one = order_of([samples([30])], 1)
    assert keys(one, 0) != keys(one, 30), "the second epoch is another shuffle"
    assert keys(one, 0) != keys(order_of([samples([30])], 1, seed=2), 0)
    both = order_of([samples([30], 0), samples([30], 1)], 1)
    assert keys(both, 0, 0) != keys(both, 0, 1)


def test_sizes_are_mixed_within_an_epoch() -> None:
    """Not all squares first: the buckets' batches are shuffled together."""
    order = order_of([samples([20, 20])], 2)
    sizes = [order.micro_batch(k)[0].size for k in range(20)]
    assert 3 <= sum(a != b for a, b in pairwise(sizes)) <= 18


def test_the_order_of_sizes_and_sets_changes_from_epoch_to_epoch() -> None:
    order = order_of([samples([20, 20], 0), samples([20, 20], 1)], 4)
    epochs = [epoch(order, number) for number in range(4)]
    assert len({tuple(batch[0].size for batch in batches) for batches in epochs}) == 4
    assert len({tuple(sorted(sum(s.dataset for s in batch) for batch in batches)) for batches in epochs}) > 1


def test_which_items_share_a_batch_changes() -> None:
    order = order_of([samples([8])], 4)
    together = {frozenset(s.key for s in batch) for k in range(10) for batch in epoch(order, k)}
    assert len(together) > 10


def test_every_place_in_an_epoch_is_as_likely_for_every_item() -> None:
    """2,000 epochs of five items: each stands at each place 400 times, give or take four standard deviations."""
    order, places = order_of([samples([5])], 1), Counter[tuple[str, int]]()
    for number in range(2000):
        places.update((batch[0].key, place) for place, batch in enumerate(epoch_of_five(order, number)))
    assert len(places) == 25
    assert all(abs(count - 400) < 4 * math.sqrt(2000 * 0.2 * 0.8) for count in places.values())


def epoch_of_five(order: BatchOrder, number: int) -> list[list[Sample]]:
    return [order.micro_batch(5 * number + place) for place in range(5)]


def test_one_item_alone_fills_a_run() -> None:
    order = order_of([samples([1])], 4)
    assert [len(order.micro_batch(k)) for k in (0, 1, 1000)] == [1, 1, 1]


# --- several sets and repeats ----------------------------------------------------------------------------------------


@given(counts, counts, st.integers(1, 12), batch_sizes, seeds, weights, weights)
@settings(max_examples=60)
def test_no_item_gets_ahead_of_its_share(
    many: list[int], others: list[int], repeats: int, batch_size: int, seed: int, one: float, other: float
) -> None:
    """After each epoch an item was drawn as often as its weight says, rounded down or up, and so were all others.

    What an epoch is follows from the first item that is drawn most often: in it, that one comes in every round.
    """
    sets = [samples(many), samples(others, 1) + samples(many, 1, repeats + 1)]
    order = order_of(sets, batch_size, seed, weight=[one, other])
    rates = {s.key: s.item.repeats * (one, other)[s.dataset] for group in sets for s in group}
    most = max(rates.values())
    drawn: Counter[str] = Counter()
    for number in range(4):
        drawn.update(sample.key for batch in epoch(order, number) for sample in batch)
        rounds = max(drawn.values())
        for key, rate in rates.items():
            # rates are kept to a millionth of the largest one
            low, high = rounds * (rate / most - 2e-6), rounds * (rate / most + 2e-6)
            assert math.floor(low) <= drawn[key] <= math.ceil(high)


@pytest.mark.parametrize(("weight", "shares"), [([1, 1], (10, 4)), ([1, 2.5], (10, 10)), ([0.5, 1], (5, 4))])
def test_weights_are_shares(weight: list[float], shares: tuple[int, int]) -> None:
    order = order_of([samples([10], 0), samples([4], 1)], 3, weight=weight)
    drawn = Counter(sample.dataset for number in range(10) for batch in epoch(order, number) for sample in batch)
    assert Fraction(drawn[0], drawn[1]) == Fraction(*shares)


def test_a_small_weight_still_lets_every_item_come_in_an_epoch() -> None:
    """A tenth of the weight: an epoch is ten rounds of the other set, and every item has come at its end."""
    order = order_of([samples([20], 0), samples([5], 1)], 4, weight=[1, 0.1])
    for number in range(3):
        drawn = Counter(sample.key for batch in epoch(order, number) for sample in batch)
        assert all(count == (10 if key.startswith("0") else 1) for key, count in drawn.items())
        assert len(drawn) == 25


def test_a_set_of_tiny_weight_beside_a_huge_one_makes_no_endless_epoch() -> None:
    order = order_of([samples([1000], 0), samples([5], 1)], 4, weight=[1000, 1e-9])
    assert order.epoch_length(0) * 4 <= 40_000
    assert {sample.dataset for k in range(300) for sample in order.micro_batch(k)} == {0}


@given(st.integers(2, 10), st.integers(1, 6), seeds)
def test_repeats_multiply(repeats: int, batch_size: int, seed: int) -> None:
    """As in kohya's scripts, `5_name` beside `1_other`: five draws for one."""
    order = order_of([samples([4], repeats=repeats) + samples([6])], batch_size, seed)
    drawn = Counter(s.item.repeats for batch in epoch(order, 0) + epoch(order, 1) for s in batch)
    assert drawn[repeats] / 4 == repeats * drawn[1] / 6


def test_repeats_of_a_whole_set_are_its_weight() -> None:
    """All in `10_name` is the same as all in no such folder: nothing is drawn twice before the rest."""
    order = order_of([samples([7], repeats=10)], 3)
    for number in range(4):
        assert sorted(len(batch) for batch in epoch(order, number)) == [1, 3, 3]
        assert len({sample.key for batch in epoch(order, number) for sample in batch}) == 7


def test_batches_stay_full_between_the_rounds_of_an_epoch() -> None:
    """A set drawn once in ten rounds: its size's batches are not one picture each."""
    order = order_of([samples([10], 0), samples([0, 8], 1)], 4, weight=[1, 0.1])
    assert sorted(len(batch) for batch in epoch(order, 0)) == [4] * 27


# --- kinds of batches ------------------------------------------------------------------------------------------------


@given(counts, counts, batch_sizes, seeds, st.sampled_from([0.3, 0.5, 0.25, 0.77]))
def test_a_batch_is_of_one_kind(many: list[int], others: list[int], batch_size: int, seed: int, ratio: float) -> None:
    sets = [
        samples(many, 0),
        samples(others, 1),
        samples(others, 2, controls=1),
        samples(many, 3),
        samples(others, 4),
        samples(many, 5),
    ]
    roles = ["train", "train", "train", "regularization", "regularization", "validation"]
    targets = ["images", "base", "images", "images", "base", "images"]
    strengths = [1.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    order = order_of(
        sets, batch_size, seed, ratio, role=roles, regularization_target=targets, adapter_strength=strengths
    )
    seen = set()
    for number in range(60):
        batch = order.micro_batch(number)
        kinds = {
            (s.size, strengths[s.dataset], roles[s.dataset], len(s.item.controls))
            + ((targets[s.dataset],) if roles[s.dataset] == "regularization" else ())
            for s in batch
        }
        assert len(kinds) == 1
        seen |= {s.dataset for s in batch}
        regularization = math.floor((number + 1) * Fraction(str(ratio))) > math.floor(number * Fraction(str(ratio)))
        assert (roles[batch[0].dataset] == "regularization") == regularization
    assert 5 not in seen, "sets for validation are never drawn"


@pytest.mark.parametrize(("ratio", "count", "share"), [(0.5, 10, 5), (0.1, 1000, 100), (0.29, 100, 29), (0.9, 50, 45)])
def test_share_of_regularization_batches_is_exact(ratio: float, count: int, share: int) -> None:
    """0.29 · 100 is 28.999… in floating point: that must not cost a batch."""
    order = order_of([samples([5], 0), samples([3], 1)], 2, ratio=ratio, role=["train", "regularization"])
    drawn = [order.micro_batch(k)[0].dataset for k in range(count)]
    assert drawn.count(1) == share


def test_regularization_and_training_keep_an_order_each() -> None:
    """What is drawn of a set does not depend on the other: regularization batches are put in between."""
    plain = order_of([samples([9, 5], 0)], 2)
    mixed = order_of([samples([9, 5], 0), samples([4], 1)], 2, ratio=0.25, role=["train", "regularization"])
    drawn = [mixed.micro_batch(k) for k in range(64)]
    assert [b for b in drawn if b[0].dataset == 0] == [plain.micro_batch(k) for k in range(48)]
    regularization = [sample.key for batch in drawn if batch[0].dataset == 1 for sample in batch]
    for start in range(0, 32, 4):
        assert len(set(regularization[start : start + 4])) == 4


def test_without_regularization_samples_all_is_training() -> None:
    order = order_of([samples([5], 0), []], 2, ratio=0.9, role=["train", "regularization"])
    assert {order.micro_batch(k)[0].dataset for k in range(20)} == {0}


@pytest.mark.parametrize("sets", [[[], samples([3], 1)], [[], []]])
def test_nothing_to_train_on_is_told(sets: list[list[Sample]]) -> None:
    with pytest.raises(DatasetError, match="no images to train on"):
        order_of(sets, 2, role=["train", "regularization"])


# --- random access ---------------------------------------------------------------------------------------------------


@given(counts, batch_sizes, seeds, weights, st.lists(st.integers(0, 60), min_size=1, max_size=12))
@settings(max_examples=60)
def test_a_batch_is_the_same_whenever_it_is_asked_for(
    many: list[int], batch_size: int, seed: int, weight: float, numbers: list[int]
) -> None:
    def make() -> BatchOrder:
        sets = [samples(many), samples([3], 1), samples([2, 1], 2)]
        return order_of(
            sets, batch_size, seed, 0.3, weight=[weight, 1.0, 1.0], role=["train", "train", "regularization"]
        )

    in_order, jumping = make(), make()
    expected = [in_order.micro_batch(k) for k in range(61)]
    assert [jumping.micro_batch(k) for k in numbers] == [expected[k] for k in numbers]


def test_jumping_far_counts_the_epochs_between_exactly() -> None:
    """2,500 epochs of uneven length, over the ends of the blocks they are counted in: drawn in order, and jumped to."""

    def make() -> BatchOrder:
        return order_of([samples([3, 2]), samples([1], 1)], 2, weight=[1, 0.4])

    walking, end = make(), sum(make().epoch_length(k) for k in range(2500))
    lengths = {make().epoch_length(k) for k in range(20)}
    assert len(lengths) > 1
    drawn = [walking.micro_batch(k) for k in range(end)]
    for number in (end - 1, end // 2, 1024, 0):
        assert make().micro_batch(number) == drawn[number]
    # 5 items in every round and one in 2 of 5
    several = Counter(sample.dataset for batch in drawn for sample in batch)
    assert several[1] / several[0] == pytest.approx(0.4 / 5, rel=1e-3)


def test_a_run_of_a_million_batches_can_be_resumed() -> None:
    order = order_of([samples([2]), samples([1], 1)], 4, weight=[1, 0.37])
    far = order.micro_batch(10**6)
    assert order.micro_batch(10**6) == far
    assert 1 <= len(far) <= 4
