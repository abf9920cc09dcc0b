"""Which checkpoint is best, and whether the run trains for too long: from measures alone, told in sentences.

A checkpoint's worth is what it has learned, as a share of the most that any of them has, less what it has changed that
it should have left alone (the leak), less the variety that was lost. Of those that are as good, the earliest is best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_RISE = 0.1
"""Share of what was gained in held-out loss that may be lost again before it counts."""
_LEARNED = 0.9
"""Share of the most that was learned from which on there is little to gain."""
_LEAK, _VARIETY = 0.1, 0.25
"""Growth of the leak, and loss of variety, that count."""
_AS_GOOD = 0.02
"""Difference in worth that draws and rounding make."""


@dataclass(frozen=True)
class Measures:
    """Of one checkpoint, or of the base alone (step 0); None is what was not measured."""

    step: int
    train_loss: float | None = None
    """Mean of the last steps before it."""
    held_out: float | None = None
    """Loss on pictures that are not trained on."""
    leak: float | None = None
    likeness: float | None = None
    variety: float | None = None


@dataclass(frozen=True)
class Alarm:
    """The run was trained for too long."""

    step: int
    """The first that shows it."""
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the measures come to."""

    best: int | None
    """A step; None where nothing tells one from another."""
    reasons: tuple[str, ...]
    alarm: Alarm | None


def verdict(base: Measures, rows: Sequence[Measures], curve: Sequence[tuple[int, float]] = ()) -> Verdict:
    """The verdict on checkpoints, in the order of their steps.

    Args:
        curve: all held-out losses that are known, by step: those of checkpoints that are gone too.
    """
    alarm = alarm_of(base, rows, curve)
    if len(rows) < 2:
        told = (f"Step {rows[0].step} is the only checkpoint.",) if rows else ()
        return Verdict(rows[0].step if rows else None, told, alarm)
    worths = worth(base, rows)
    known = {row.step: value for row, value in zip(rows, worths, strict=True) if value is not None}
    if not known:
        return Verdict(None, ("Nothing was measured that tells one checkpoint from another.",), alarm)
    free = {step: value for step, value in known.items() if alarm is None or step < alarm.step} or known
    best = min(step for step, value in free.items() if value >= max(free.values()) - _AS_GOOD)
    return Verdict(best, tuple(_reasons(base, rows, best, alarm)), alarm)


def learned(base: Measures, rows: Sequence[Measures]) -> list[float | None]:
    """What each has learned, as a share of the most that any has: by held-out loss, by likeness, or the mean of both.

    Each share is (value - base's) / (best value - base's): 0 is the base, 1 the best of them, below 0 worse than the
    base. Held-out loss counts down to -1.
    """
    shares: list[list[float]] = [[] for _ in rows]
    for values, start, sign in (
        ([row.held_out for row in rows], base.held_out, -1.0),
        ([row.likeness for row in rows], base.likeness, 1.0),
    ):
        gains = [None if one is None or start is None else sign * (one - start) for one in values]
        most = max((gain for gain in gains if gain is not None), default=0.0)
        for share, gain in zip(shares, gains, strict=True):
            if gain is not None and most > 0:
                share.append(max(-1.0, gain / most))
    return [sum(share) / len(share) if share else None for share in shares]


def worth(base: Measures, rows: Sequence[Measures]) -> list[float | None]:
    """What is said above, in (-∞, 1]; None for a checkpoint of which it is not known what it has learned."""
    return [
        None if gained is None else gained - (row.leak or 0.0) - _lost_variety(base, row)
        for gained, row in zip(learned(base, rows), rows, strict=True)
    ]


def _lost_variety(base: Measures, row: Measures) -> float:
    if base.variety is None or row.variety is None:
        return 0.0
    return max(0.0, 1 - row.variety / base.variety)


def alarm_of(base: Measures, rows: Sequence[Measures], curve: Sequence[tuple[int, float]]) -> Alarm | None:
    """The alarm, if there is one: each of its signs holds from a step on to the last."""
    signs = [
        sign for sign in (_held_out_rises(base, rows, curve), _variety_falls(rows), _leak_grows(base, rows)) if sign
    ]
    return Alarm(min(step for step, _ in signs), tuple(text for _, text in signs)) if signs else None


Sign = tuple[int, str]


def _held_out_rises(base: Measures, rows: Sequence[Measures], curve: Sequence[tuple[int, float]]) -> Sign | None:
    known = dict(curve) | {row.step: row.held_out for row in rows if row.held_out is not None}
    known.pop(0, None)
    if len(known) < 2:
        return None
    low = min(known, key=lambda step: (known[step], step))
    gain = max(0.0, (known[low] if base.held_out is None else base.held_out) - known[low])
    since = _since(sorted(known), lambda step: step > low and known[step] > known[low] + _RISE * gain)
    if since is None:
        return None
    last = max(known)
    text = f"Held-out loss rises from {known[low]:.4g} at step {low} to {known[last]:.4g} at step {last}"
    losses = {row.step: row.train_loss for row in rows if row.train_loss is not None}
    early, late = losses.get(low), losses.get(last)
    if early is not None and late is not None:
        text += f", while training loss {'falls' if late < early else 'goes'} from {early:.4g} to {late:.4g}"
    return since, f"{text}."


def _variety_falls(rows: Sequence[Measures]) -> Sign | None:
    known = {row.step: (row.variety, row.likeness) for row in rows if row.variety and row.likeness}
    if len(known) < 2:
        return None
    high, last = max(known, key=lambda step: (known[step][0], -step)), max(known)
    most, alike = known[high]
    since = _since(
        sorted(known), lambda one: one > high and known[one][0] < (1 - _VARIETY) * most and known[one][1] >= alike
    )
    if since is None:
        return None
    fewer, nearer = known[last]
    return since, (
        f"From step {high} to step {last} pictures come nearer to the training pictures ({alike:.2f} to {nearer:.2f}) "
        f"and differ less from one another (variety {most:.2f} to {fewer:.2f})."
    )


def _leak_grows(base: Measures, rows: Sequence[Measures]) -> Sign | None:
    known = {row.step: row.leak for row in rows if row.leak is not None}
    gained = dict(zip((row.step for row in rows), learned(base, rows), strict=True))
    begin = next((step for step in sorted(known) if (gained[step] or 0.0) >= _LEARNED), None)
    if begin is None:
        return None
    since, last = _since(sorted(known), lambda one: one > begin and known[one] > known[begin] + _LEAK), max(known)
    if since is None:
        return None
    return since, (
        f"The leak grows from {known[begin]:.2f} at step {begin}, when nearly all was learned, to {known[last]:.2f} at "
        f"step {last}."
    )


def _since(steps: Sequence[int], shows: Callable[[int], bool]) -> int | None:
    """The first step from which on all show something."""
    found = None
    for step in reversed(steps):
        if not shows(step):
            break
        found = step
    return found


def _reasons(base: Measures, rows: Sequence[Measures], best: int, alarm: Alarm | None) -> list[str]:
    """Why a step is best."""
    own, last = next(row for row in rows if row.step == best), rows[-1]
    told = []
    if own.held_out is not None:
        known = [row.held_out for row in rows if row.held_out is not None]
        place = "the lowest" if own.held_out <= min(known) else f"the lowest is {min(known):.4g}"
        told.append(
            f"Held-out loss is {own.held_out:.4g}, {place}{_beside(base.held_out, 'with the base alone', '.4g')}."
        )
    if own.likeness is not None:
        known = [row.likeness for row in rows if row.likeness is not None]
        place = "the highest" if own.likeness >= max(known) else f"the highest is {max(known):.2f}"
        told.append(
            f"Likeness to the training pictures is {own.likeness:.2f}, {place}"
            f"{_beside(base.likeness, 'with the base alone', '.2f')}."
        )
    if own.leak is not None:
        later = "" if own is last else _beside(last.leak, f"at step {last.step}", ".2f")
        told.append(f"Without the trigger its pictures differ by {own.leak:.2f} from the base's{later}.")
    if own.variety is not None:
        told.append(
            f"Variety of its pictures is {own.variety:.2f}{_beside(base.variety, 'with the base alone', '.2f')}."
        )
    if alarm and alarm.step > best:
        told.append(f"From step {alarm.step} on the run is over-trained.")
    return [f"Step {best} is the best of {len(rows)} checkpoints.", *told]


def _beside(value: float | None, what: str, form: str) -> str:
    return "" if value is None else f", against {value:{form}} {what}"
