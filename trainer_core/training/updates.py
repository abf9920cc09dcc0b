"""The updates of a run, one after the other, and what is told of each.

Batches whose loss or gradient is not finite are passed over. Where a GPU works on its own, an update is begun before it
is known what became of the one before it, which is told then: one late. Nothing that hangs on a step (a checkpoint, a
measurement, previews, the end) happens before it is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from ..errors import FoundryError
from ..runs.events import Listener, Skipped
from .optimizers import effective_rate
from .parallel import ALONE, Ranks
from .update import Begun, Made, NotFinite

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..runs.run_folder import RunFolder
    from .determinism import Findings
    from .experts import Experts
    from .state import Progress
    from .update import Batches, Updater

_T = TypeVar("_T")
_COMPARED_EVERY = 100
"""Steps"""
Get = Callable[[int], "Batches"]
"""Gives the micro-batches of an update by its number."""


class Updates:
    """Makes them."""

    def __init__(
        self,
        run: RunFolder,
        job: JobConfig,
        experts: Experts,
        progress: Progress,
        findings: Findings,
        emit: Listener,
        told: Callable[[Made, float, float], None],
        ranks: Ranks = ALONE,
    ) -> None:
        """`told` hears of each update that was made, with the seconds that it took, and its learning rate."""
        self._run, self._job, self._experts, self._progress = run, job, experts, progress
        self._findings, self._emit, self._told, self._ranks = findings, emit, told, ranks
        self.late = experts.read_late()
        """Whether an update's numbers are read when the next one is begun."""
        self.begun: Begun | None = None
        """What nothing has been told of yet."""
        self._started = 0.0

    def advance(self, batches: Get) -> None:
        """Makes the next update, or begins it and tells of the one before.

        Raises:
            NotFinite, TrainingError: as `update`.
        """
        progress, ahead = self._progress, int(self.begun is not None)
        if not ahead:
            self._started = time.perf_counter()
        if not self.late or self._counts(progress.step + ahead + 1):
            self.settle(batches)
            self._count(self.update(batches))
            return
        given = batches(progress.number + ahead)
        begun = self._by(given, lambda updater: updater.begin(given, progress.step + ahead))
        if self.settle(batches):
            self.begun = begun  # else it has changed nothing, and its batches come again

    def settle(self, batches: Get) -> bool:
        """Waits for the update that was begun, if there is one, and tells of it. Gives whether it counts.

        If not, its batches are passed over, and the update is made with the next ones, without anything begun.
        """
        begun, self.begun = self.begun, None
        if begun is None:
            return True
        try:
            self._count(begun.made(), begun.rate)
        except NotFinite as error:
            self._count(self.update(batches, error))
            return False
        return True

    def rescue(self) -> None:
        """After a failure: what was begun before it counts, if it can be read."""
        begun, self.begun = self.begun, None
        if begun is not None:
            with suppress(FoundryError, OSError, RuntimeError):
                self._count(begun.made(), begun.rate)

    def update(self, batches: Get, failed: NotFinite | None = None) -> Made:
        """The next update; batches whose loss or gradient is not finite are passed over, `skip_limit` in a row.

        Args:
            failed: what became of the first ones, if they were tried already.

        Raises:
            NotFinite: for one more than that.
        """
        known = self._progress.skipped
        try:
            return self._first_finite_update(batches, failed)
        except Exception:
            # the step was not made: whoever goes on passes its batches over again, and says so
            self._progress.skipped = known
            raise

    def _first_finite_update(self, batches: Get, failed: NotFinite | None) -> Made:
        step = self._progress.step
        for left in reversed(range(self._job.train.skip_limit + 1)):
            try:
                if failed is not None:
                    raise failed
                return self.update_with(batches(self._progress.number))
            except NotFinite as error:
                failed = None
                if not left:
                    raise
                self._progress.skipped += 1
                self._run.append_metrics({"step": step + 1, "skipped": error.images, "not_finite": error.what})
                self._emit(Skipped(step + 1, error.what, tuple(error.images)))
        raise AssertionError("unreachable")

    def update_with(self, batches: Batches) -> Made:
        """One update on given micro-batches: the mean of the objective over all their samples."""
        return self._by(batches, lambda updater: updater.update(batches, self._progress.step))

    def _by(self, batches: Batches, action: Callable[[Updater], _T]) -> _T:
        """What the updater of these micro-batches' expert does with them."""
        updater = self._experts.of_update(batches[0].number).updater
        done = action(updater)
        if updater.pieces > 1:
            self._findings.add("batches were cut because memory was not enough")
        return done

    def _counts(self, step: int) -> bool:
        """Whether something hangs on what the update of a step came to."""
        job = self._job
        every = (job.train.steps, job.validation.every, job.save.every, job.sample.every)
        return self._meets(step) or any(one > 0 and step % one == 0 for one in every)

    def _meets(self, step: int) -> bool:
        """Whether the ranks compare their weights after a step."""
        return self._ranks.count > 1 and step % _COMPARED_EVERY == 1

    def meet(self) -> None:
        """To be called after each `advance`: what the ranks must know of one another.

        Raises:
            RanksDiffer: if their weights are not the same.
        """
        if self._ranks.count > 1:
            check = self.begun is None and self._meets(self._progress.step)
            self._experts.active.updater.meet(check)

    def _count(self, made: Made, rate: float | None = None) -> None:
        self._progress.step += 1
        started, self._started = self._started, time.perf_counter()
        self._told(made, self._started - started, rate or effective_rate(self._experts.active.updater.optimizer))
