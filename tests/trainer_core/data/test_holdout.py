"""The split: by content, stable, never empty on a side that must not be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.data.holdout import held_out

CONTENTS = st.lists(st.integers(0, 30).map(str), max_size=20)
SETS = st.lists(CONTENTS, max_size=4)
SHARES = st.floats(0.001, 0.5)


def test_no_share_holds_nothing_out() -> None:
    assert held_out([["a", "b", "c"]], [], 0.0) == frozenset()


@given(SETS, SETS, SHARES)
def test_every_set_keeps_one_and_gives_one_where_it_can(
    sets: list[list[str]], others: list[list[str]], share: float
) -> None:
    held = held_out(sets, others, share)
    assert held <= {content for group in sets for content in group}
    for group in (*sets, *others):
        assert not group or set(group) - held, "something is left to train on"
    if len(sets) == 1 and not others and len(set(sets[0])) > 1:
        assert held, "something validates"


@given(SETS, SETS, SHARES)
def test_order_and_copies_do_not_matter(sets: list[list[str]], others: list[list[str]], share: float) -> None:
    shuffled = [group[::-1] + group[:2] for group in sets[::-1]]
    assert held_out(sets, others, share) == held_out(shuffled, others[::-1], share)


@given(st.lists(st.integers(0, 10**9).map(str), min_size=2, max_size=60, unique=True), SHARES, st.integers(1, 40))
def test_adding_files_moves_hardly_anything(contents: list[str], share: float, count: int) -> None:
    """What the share decides stays; only the one that a small set gives up, or keeps, against it may change."""
    fewer, more = contents[: max(2, len(contents) - count)], contents
    before, after = held_out([fewer], [], share), held_out([more], [], share)
    assert len((before ^ after) & set(fewer)) <= 1


def test_the_share_is_met_in_large_sets() -> None:
    """Binomial: 10,000 · 0.2 ± 4 standard deviations of 40."""
    contents = [f"{k:064x}" for k in range(10_000)]
    assert abs(len(held_out([contents], [], 0.2)) - 2000) < 160


def test_a_larger_share_holds_out_what_a_smaller_one_did() -> None:
    contents = [str(k) for k in range(200)]
    held = [held_out([contents], [], share) for share in (0.05, 0.1, 0.3, 0.5)]
    assert all(small < large for small, large in pairwise(held))


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_picture_alone_in_another_set_is_trained_on_and_not_held_out_here(share: float) -> None:
    """x is all that the second set has; so the first set must give up another, whatever the numbers say."""
    contents = [str(k) for k in range(6)]
    for x in contents:
        assert x not in held_out([contents, [x]], [], share)
        assert x not in held_out([contents], [[x]], share)
        assert held_out([contents, [x]], [], share)


def test_a_set_of_one_picture_or_of_copies_of_one_is_trained_on() -> None:
    assert held_out([["a"]], [], 0.5) == held_out([["a", "a", "a"]], [], 0.5) == frozenset()
