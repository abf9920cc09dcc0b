"""Which pictures are held out for validation: a function of their content.

A picture is held out if a number drawn for its content is below the share. So adding, renaming or moving files does not
move others from one side to the other, and equal files are always on the same side, whatever set they are in.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..randomness import uniform


def held_out(sets: Sequence[Sequence[str]], others: Sequence[Sequence[str]], share: float) -> frozenset[str]:
    """The contents that are held out.

    Every set keeps a picture to train on, and gives at least one up if it has two that differ: in small sets the share
    is only met roughly.

    Args:
        sets: digests of the pictures of each set that is split.
        others: the same for sets that are trained on and not split; of each, too, one picture stays.
        share: of each set, 0 to 1; 0 holds nothing out.
    """
    if share <= 0:
        return frozenset()
    kept = {max(group, key=_place) for group in (*sets, *others) if group}
    held = {content for group in sets for content in group if content not in kept and _place(content) < share}
    free = [set(group) - kept for group in sets]
    return frozenset(held | {min(group, key=_place) for group in free if group and not group & held})


def _place(content: str) -> float:
    return uniform("held out", content)
