"""The verdict on series made up by hand."""

from __future__ import annotations

import pytest

from trainer_core.choosing.verdict import Measures, alarm_of, learned, verdict, worth

BASE = Measures(0, held_out=0.7, leak=0.0, likeness=0.2, variety=0.9)


def series(**values: list[float]) -> list[Measures]:
    """Measures at steps 100, 200, …"""
    count = len(next(iter(values.values())))
    return [Measures(100 * (k + 1), **{name: one[k] for name, one in values.items()}) for k in range(count)]


def test_what_was_learned_is_a_share_of_the_most_that_any_has() -> None:
    rows = series(held_out=[0.65, 0.6, 0.75], likeness=[0.25, 0.3, 0.4])
    assert learned(BASE, rows) == pytest.approx([(0.5 + 0.25) / 2, (1 + 0.5) / 2, (-0.5 + 1) / 2])
    assert learned(BASE, series(held_out=[0.65, 1.2])) == pytest.approx([1, -1]), "-10 is as bad as -1"
    assert learned(BASE, series(leak=[0.1, 0.2])) == [None, None]
    assert learned(BASE, series(held_out=[0.75, 0.8])) == [None, None], "nothing was learned by any"


def test_worth_is_what_was_learned_less_leak_and_lost_variety() -> None:
    rows = series(held_out=[0.65, 0.6], leak=[0.1, 0.4], variety=[0.9, 0.6])
    assert worth(BASE, rows) == pytest.approx([0.5 - 0.1, 1 - 0.4 - 1 / 3])
    more = series(held_out=[0.6, 0.6], variety=[1.0, 0.9])
    assert worth(BASE, more) == pytest.approx([1, 1]), "more variety than the base's is no merit"


def test_over_training_is_told_with_the_step_from_which_it_shows() -> None:
    rows = series(held_out=[0.62, 0.6, 0.605, 0.64, 0.66], train_loss=[0.9, 0.8, 0.7, 0.6, 0.5])
    found = verdict(BASE, rows)
    # a tenth of 0.7 - 0.6 may be lost again: 0.605 is no rise
    assert found.alarm is not None
    assert found.alarm.step == 400
    assert found.alarm.reasons == (
        "Held-out loss rises from 0.6 at step 200 to 0.66 at step 500, while training loss falls from 0.8 to 0.5.",
    )
    assert found.best == 200
    assert found.reasons[0] == "Step 200 is the best of 5 checkpoints."
    assert found.reasons[1] == "Held-out loss is 0.6, the lowest, against 0.7 with the base alone."
    assert found.reasons[-1] == "From step 400 on the run is over-trained."


def test_a_loss_that_comes_down_again_is_no_over_training() -> None:
    assert alarm_of(BASE, series(held_out=[0.62, 0.6, 0.66, 0.6]), ()) is None
    assert alarm_of(BASE, series(held_out=[0.66, 0.64, 0.62, 0.6]), ()) is None


def test_losses_of_checkpoints_that_are_gone_count_for_the_alarm() -> None:
    rows = series(held_out=[0.64, 0.65])
    assert alarm_of(BASE, rows, ()) is not None  # 0.01 of 0.06
    curve = [(0, 0.7), (50, 0.5), (100, 0.64), (200, 0.65)]
    found = verdict(BASE, rows, curve)
    assert found.alarm is not None
    assert found.alarm.step == 100
    assert found.best == 100, "all that are there are over-trained: the best of them"


def test_variety_that_falls_while_likeness_rises_is_over_training() -> None:
    rows = series(likeness=[0.3, 0.4, 0.5, 0.6], variety=[0.9, 0.85, 0.6, 0.5])
    found = verdict(BASE, rows)
    assert found.alarm is not None
    assert found.alarm.step == 300
    assert found.alarm.reasons == (
        "From step 100 to step 400 pictures come nearer to the training pictures (0.30 to 0.60) and differ less from "
        "one another (variety 0.90 to 0.50).",
    )
    assert found.best == 200  # 0.5 - 0.056 against 0.25
    assert alarm_of(BASE, series(likeness=[0.5, 0.3], variety=[0.9, 0.5]), ()) is None, "they come no nearer"


def test_a_leak_that_grows_when_all_is_learned_is_over_training() -> None:
    rows = series(held_out=[0.65, 0.605, 0.6, 0.6], leak=[0.05, 0.1, 0.25, 0.4])
    found = verdict(BASE, rows)
    assert found.alarm is not None
    assert found.alarm.step == 300
    assert found.alarm.reasons == (
        "The leak grows from 0.10 at step 200, when nearly all was learned, to 0.40 at step 400.",
    )
    assert found.best == 200
    assert "Without the trigger its pictures differ by 0.10 from the base's, against 0.40 at step 400." in found.reasons
    assert alarm_of(BASE, series(held_out=[0.69, 0.65, 0.6], leak=[0.1, 0.3, 0.5]), ()) is None, "it learns meanwhile"


def test_of_equally_good_ones_the_earliest_is_best() -> None:
    assert verdict(BASE, series(held_out=[0.65, 0.601, 0.6, 0.601])).best == 200


def test_few_or_no_measures() -> None:
    assert verdict(BASE, []).best is None
    one = verdict(BASE, series(held_out=[0.6]))
    assert (one.best, one.reasons, one.alarm) == (100, ("Step 100 is the only checkpoint.",), None)
    nothing = verdict(Measures(0), [Measures(100), Measures(200, train_loss=0.3)])
    assert (nothing.best, nothing.alarm) == (None, None)
    assert nothing.reasons == ("Nothing was measured that tells one checkpoint from another.",)
    partly = verdict(BASE, [Measures(100), Measures(200, held_out=0.65)])
    assert partly.best == 200
