"""The training loop. Data and base are prepared elsewhere; what an update minimises and does is in `update.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..adapters.metadata import lora_metadata
from ..data.cache import CacheMiss
from ..errors import DatasetError, FoundryError, Interrupted, SaveError, TrainingError, first_line
from ..families.device import forget_peak, is_out_of_memory, peak_memory, release_memory, training_memory
from ..memory.settings import label
from ..runs.events import CheckpointSaved, Listener, Phase, RequestDone, StepDone, ValidationDone, Warning
from ..runs.requests import SAMPLE, SAVE, STOP, Requests
from .advice import advice
from .batch_source import BatchSource, Prefetched
from .determinism import Findings
from .experts import Experts
from .fitting import Fitting
from .parallel import ALONE, Ranks, RanksDiffer
from .previews import Previews
from .resume_rules import check_resume, digests, facts, sampled_hashes
from .state import Progress, load_state, lora_files, read_facts, state_file, warm_start
from .step import timesteps_of
from .update import NotFinite
from .updates import Updates
from .validation import validation_loss

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..data.prepare import PreparedData
    from ..families.base import Base
    from ..runs.run_folder import RunFolder
    from .update import Batches, Made

_T = TypeVar("_T")
_SETTLED = 2
"""Steps after which everything that training needs is in memory."""


class Trainer:
    """One run in memory: the experts that it trains, and how far they have come."""

    def __init__(
        self,
        run: RunFolder,
        job: JobConfig,
        base: Base,
        data: PreparedData,
        emit: Listener,
        requests: Requests,
        findings: Findings | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.run, self.job, self.base, self.data = run, job, base, data
        self.emit, self.requests, self.findings = emit, requests, findings or Findings()
        self.ranks = ranks
        self.previews = Previews(run, job, base, data, emit)  # by the VAE, before the denoiser takes the memory
        if job.adapter.text_encoders:
            base.load_text_encoders()  # stay loaded: captions are encoded anew in each step
        self.fitting = Fitting(job, base, data, emit)
        self.experts = Experts(job, base, emit, self.fitting.settings, ranks)
        for one in self.experts:
            one.updater.make_room = self._make_room
        self.batches = BatchSource(job, base, data, timesteps_of(job, base), self.experts.stages, ranks)
        self.progress = Progress()
        self.saved = 0
        """Updates in the newest checkpoint."""
        self._digests = digests(data, base)
        self._times: deque[float] = deque(maxlen=20)
        self.updates = Updates(run, job, self.experts, self.progress, self.findings, emit, self.report, ranks)
        self._to_compare: int | None = _SETTLED
        """Steps before it is seen whether memory is as planned; None afterwards."""
        self._left_out: set[tuple[str, int]] = set()
        for hint in advice(job):
            emit(Warning(hint))

    # --- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains to the last step, or until a stop or a pause is asked for; saves in either case, and on a failure.

        Gives whether nothing is left to do. A stop leaves out the measurements and previews that were due; the resumed
        run makes up for them first.
        """
        try:
            self._loop()
        except (NotFinite, SaveError, RanksDiffer):
            raise  # a checkpoint from before is better than what led here, or than what this disk would make of it
        except Exception:
            self._rescue()
            raise
        return self.step == self.job.train.steps and not self._lacks_validation() and not self._lacks_samples()

    def _loop(self) -> None:
        job, ahead, updates = self.job, Prefetched(self.batches, self.base.device), self.updates
        batches = self._batches_from(ahead.get)
        if self._lacks_validation():
            self.validate()
        if self._lacks_samples():
            self.draw_samples()
        forget_peak(self.base.device)
        try:
            while self.step < job.train.steps and not self.ranks.agreed(self.requests.interrupts):
                with self.findings.probing():
                    updates.advance(batches)
                updates.meet()
                if updates.begun and (self._to_compare == 0 or self.ranks.agreed(self.requests.any)):
                    updates.settle(batches)
                if updates.begun:
                    continue  # nothing is due at its step
                if self._to_compare is not None and self._to_compare <= 0:
                    self._to_compare = None
                    self._compare_memory()
                if self._is_due(job.validation.every):
                    self.validate()
                if (asked := self.requests.take(SAVE)) | self._is_due(job.save.every):
                    self.save()
                    self._answer(SAVE, asked)
                if (asked := self.requests.take(SAMPLE)) | self._is_due(job.sample.every):
                    self.draw_samples()
                    self._answer(SAMPLE, asked and not self.previews.lacks(self.step))
            updates.settle(batches)
        finally:
            ahead.close()
        if self.step and self.step != self.saved and self.ranks.leads:
            self.save()

    def _answer(self, request: str, done: bool) -> None:
        """Tells that what was asked for is done, or why it is not."""
        if done and request == SAMPLE and not self.job.sample.prompts:
            self.emit(Warning("previews were asked for, and sample.prompts is empty"))
        elif done:
            self.emit(RequestDone(request, self.step))

    @property
    def step(self) -> int:
        """Updates made."""
        return self.progress.step

    def _is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens here and now; 0 is never."""
        return self.ranks.leads and every > 0 and (self.step % every == 0 or self.step == self.job.train.steps)

    def _lacks_validation(self) -> bool:
        """Whether the weights as they are should have been measured (at step 0: the base alone) and were not."""
        every = self.job.validation.every
        wanted = self.ranks.leads and every > 0 if self.step == 0 else self._is_due(every)
        if not wanted or ("validation", self.step) in self._left_out:
            return False
        return not any("validation_loss" in line for line in self.run.metrics() if line["step"] == self.step)

    def _lacks_samples(self) -> bool:
        config = self.job.sample
        wanted = self.ranks.leads and config.before_training if self.step == 0 else self._is_due(config.every)
        return wanted and ("previews", self.step) not in self._left_out and self.previews.lacks(self.step)

    # --- updates -----------------------------------------------------------------------------------------------------

    def update(self) -> Made:
        """The next update, known at once."""
        return self.updates.update(self._batches_from(self.batches.get))

    def _batches_from(self, get: Callable[[int], Batches]) -> Callable[[int], Batches]:
        return lambda number: self._from_cache(lambda: get(number))

    def _from_cache(self, action: Callable[[], _T]) -> _T:
        """What an action gives; where the cache has lost what it needs, that is encoded again and the action repeated.

        Raises:
            DatasetError: if a file is gone as well, or another one, or the cache loses what it is given.
        """
        with suppress(CacheMiss):
            return action()
        self.data.encode_again()
        try:
            return action()
        except CacheMiss:
            raise DatasetError("what is written to the cache vanishes at once: is something clearing it?") from None

    def _make_room(self, reason: str) -> bool:
        """After a lack of memory: whether the step is to be tried again, now that it takes less."""
        settings = self.fitting.tighter()
        if settings is None:
            return False
        self.experts.spend(settings)
        self.emit(
            Warning(
                f"memory is not enough ({reason}): from now on {label(settings)}, which is the same step and takes "
                "longer"
            )
        )
        return True

    def _compare_memory(self) -> None:
        """After the first real steps: whether they took what was planned."""
        measured, row = training_memory(self.base.device), self.fitting.row
        if measured is None or row is None:
            return
        self.run.append_metrics({"step": self.step, "memory_predicted": round(row.peak), "memory_measured": measured})
        settings = self.fitting.corrected(measured)
        if settings is not None:
            self.experts.spend(settings)

    # --- what it tells and keeps -------------------------------------------------------------------------------------

    def report(self, made: Made, seconds: float, rate: float) -> None:
        """Writes the metrics line and tells the listeners."""
        if self._to_compare is not None:
            self._to_compare -= 1
        self.progress.losses.append(made.loss)
        self._times.append(seconds)
        mean, steps = sum(self._times) / len(self._times), self.job.train.steps
        memory = peak_memory(self.base.device)
        if self.step % self.job.train.log_every == 0 or self.step == steps:
            line: dict[str, Any] = {"step": self.step, "loss": made.loss, **made.parts, "lr": rate}
            line["grad_norm"] = made.norm
            if self.experts.stages.boundaries:
                line["stage"] = self.experts.stages.stage(self.progress.number - 1)
            self.run.append_metrics({**line, "seconds_per_step": round(seconds, 4), "peak_memory": memory})
        self.emit(StepDone(self.step, steps, made.loss, rate, mean, mean * (steps - self.step), memory, made.parts))

    def validate(self) -> None:
        """Measures the loss on held-out pictures, with the weights that the LoRA file would hold."""
        self.emit(Phase("measuring the validation loss", 0, 1))
        with self._optional("validation"), self.experts.evaluating(self.job.save.weights):
            settings = self.job.validation.draws, self.job.train.batch_size
            loss = self._from_cache(lambda: validation_loss(self.experts, self.data, *settings, self.requests.check))
            self.run.append_metrics({"step": self.step, "validation_loss": loss})
            self.emit(ValidationDone(self.step, loss))

    def draw_samples(self) -> None:
        """Draws the job's previews."""
        with self._optional("previews"):
            self._from_cache(lambda: self.previews.draw(self.step, self.experts, self.requests.check))

    @contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """For what training can do without: a request ends it early, and it is left out where memory is not enough."""
        try:
            yield
            return
        except Interrupted:
            if not self.requests.interrupts:  # a host's cancel, of which the models heard first
                self.requests.ask(STOP)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        release_memory(self.base.device)
        self._left_out.add((what, self.step))
        self.emit(Warning(f"memory is not enough for {what} at step {self.step}, which are left out ({reason})"))

    def save(self) -> None:
        """Saves a checkpoint of the updates made so far, then deletes those that are kept no longer.

        Raises:
            TrainingError: if a weight is not finite: what is on the disk is worth more.
            SaveError: if it cannot be written.
        """
        if not all(parameter.isfinite().all() for one in self.experts for parameter in one.adapter.parameters()):
            raise TrainingError(
                f"step {self.step}: the LoRA's weights are not finite any more and are not saved. Lower "
                "train.learning_rate and resume from the last checkpoint, which is intact"
            )
        files = lora_files(self.experts, self.base, self.job, self._metadata())
        known = {**self._facts(), "findings": self.findings.dumps()}
        files["state.safetensors"] = state_file(self.experts, self.progress, known)
        checkpoint = self.run.save_checkpoint(self.step, files)
        self.saved = self.step
        self.run.prune_checkpoints(self.job.save.keep, self.job.save.keep_best)
        self.run.write_status("running", self.step, self.job.train.steps)
        self.emit(CheckpointSaved(self.step, checkpoint.path))

    def _rescue(self) -> None:
        """Saves what a failure would lose, if it can be saved; the failure itself is what the user must hear of."""
        self.updates.rescue()
        if self.ranks.leads and all(one.updater.whole for one in self.experts) and self.step != self.saved:
            with suppress(FoundryError, OSError, RuntimeError):
                self.save()

    def restore(self, accept: Collection[str] = ()) -> None:
        """Goes on from the newest intact checkpoint, if there is one; else from `adapter.warm_start`, if given.

        Args:
            accept: what may differ from the checkpoint by the user's explicit wish (`resume_rules`).

        Raises:
            ConfigError: if the job, its data or its base are not those of the checkpoint.
        """
        checkpoint = self.run.latest()
        if checkpoint is None:
            warm_start(self.job, self.base, self.experts)
            self._forget_after(-1)  # the baseline at step 0 is measured again
            return
        metadata = read_facts(checkpoint)
        self.findings.loads(metadata.get("findings", ""))
        for note in check_resume({**self._facts(), **sampled_hashes(self.base)}, metadata, accept):
            self.emit(Warning(note))
            # the note itself names the machine and its folders, which is nothing for a LoRA's metadata
            self.findings.add(f"settings, data or environment changed after step {checkpoint.step}")
        load_state(checkpoint, metadata, self.experts, self.progress)
        self.saved = self.step
        self._forget_after(self.step)

    def _forget_after(self, step: int) -> None:
        if not self.ranks.leads:
            return
        self.run.truncate_metrics(step)
        self.previews.forget(step)

    def _facts(self) -> dict[str, str]:
        return facts(self.job, self.data, self.base, self._digests, self.ranks.count)

    def _metadata(self) -> dict[str, str]:
        return lora_metadata(
            self.job,
            self.base,
            step=self.step,
            loss=self.progress.mean_loss,
            weights=self.experts.which(self.job.save.weights),
            images=[len({sample.item.key for sample in group}) for group in self.data.samples],
            dataset_digest=self._digests["dataset_digest"],
            base_hash=self._digests["base_hash"],
            deterministic=self.findings.summary(),
        )
