"""The training loop. Data and base are prepared elsewhere; what an update minimises and does is in `update.py`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from ..adapters.adapter import Adapter
from ..data.batches import BatchOrder
from ..data.prepare import PreparedData
from ..errors import FoundryError, Interrupted, SaveError, TrainingError, first_line
from ..families.device import is_out_of_memory, peak_memory, release_memory
from ..runs.events import CheckpointSaved, Listener, Skipped, StepDone, ValidationDone, Warning
from ..runs.requests import SAMPLE, SAVE, Control
from ..runs.run_folder import RunFolder
from .advice import advice
from .determinism import Findings
from .optimizers import effective_rate
from .previews import draw_samples, preview_controls
from .resume_rules import digests
from .state import lora_file, restore, state_file
from .step import Objective
from .update import Batches, Made, NotFinite, Updater
from .validation import validation_loss

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..families.base import Base


class Trainer:
    """One run in memory: the denoiser with its adapter, the optimizer, and the number of updates made."""

    def __init__(
        self,
        run: RunFolder,
        job: JobConfig,
        base: Base,
        data: PreparedData,
        emit: Listener,
        control: Control,
        findings: Findings | None = None,
    ) -> None:
        self.run, self.job, self.base, self.data = run, job, base, data
        self.emit, self.control, self.findings = emit, control, findings or Findings()
        self.preview_controls = preview_controls(job, base, data)  # by the VAE, before the denoiser takes the memory
        self.denoiser = base.load_denoiser().train()
        if job.adapter.text_encoders:
            base.load_text_encoders()  # stay loaded: captions are encoded anew in each step
        self.adapter = Adapter.of(job, base, self.denoiser)
        if job.train.gradient_checkpointing:
            cast(Any, self.denoiser).enable_gradient_checkpointing()  # every diffusers model has it
        train = job.train
        self.order = BatchOrder(data.samples, job.datasets, train.batch_size, train.seed, job.regularization.ratio)
        self.objective = Objective(job, base, data, self.denoiser, self.adapter)
        self.updater = Updater(job, self.objective, self.adapter, emit)
        self.optimizer, self.ema = self.updater.optimizer, self.updater.ema
        self.digests = digests(data, base)
        self.step = self.saved = 0
        self.skipped = 0
        """Batches passed over so far. The next batch and all its draws are number `step + skipped` of the run."""
        for hint in advice(job):
            emit(Warning(hint))
        self.losses: deque[float] = deque(maxlen=50)
        self._times: deque[float] = deque(maxlen=20)
        self._left_out: set[tuple[str, int]] = set()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains to the last step, or until a stop or a pause is asked for; saves in either case, and on a failure.

        Gives whether nothing is left to do. A stop leaves out the measurements and previews that were due; the resumed
        run makes up for them first.
        """
        try:
            self._loop()
        except (NotFinite, SaveError):
            raise  # a checkpoint from before is better than what led here, or than what this disk would make of it
        except Exception:
            self._rescue()
            raise
        return self.step == self.job.train.steps and not self._lacks_validation() and not self._lacks_samples()

    def _loop(self) -> None:
        job = self.job
        if self._lacks_validation():
            self.validate()
        if self._lacks_samples():
            self.draw_samples()
        while self.step < job.train.steps and not self.control.interrupts:
            started = time.perf_counter()
            with self.findings.probing():
                made = self.update()
            self.step += 1
            self.report(made, time.perf_counter() - started)
            if self._is_due(job.validation.every):
                self.validate()
            if self.control.take(SAVE) | self._is_due(job.save.every):
                self.save()
            if self.control.take(SAMPLE) | self._is_due(job.sample.every):
                self.draw_samples()
        if self.step and self.step != self.saved:
            self.save()

    def _is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now; 0 is never."""
        return every > 0 and (self.step % every == 0 or self.step == self.job.train.steps)

    def _lacks_validation(self) -> bool:
        """Whether the weights as they are should have been measured (at step 0: the base alone) and were not."""
        every = self.job.validation.every
        wanted = every > 0 if self.step == 0 else self._is_due(every)
        if not wanted or ("validation", self.step) in self._left_out:
            return False
        return not any("validation_loss" in line for line in self.run.metrics() if line["step"] == self.step)

    def _lacks_samples(self) -> bool:
        config = self.job.sample
        wanted = config.before_training if self.step == 0 else self._is_due(config.every)
        if not wanted or ("previews", self.step) in self._left_out:
            return False
        return len(self.run.sample_paths(self.step)) < len(config.prompts)

    # --- updates -----------------------------------------------------------------------------------------------------

    def update(self) -> Made:
        """The next update; batches whose loss or gradient is not finite are passed over, `skip_limit` in a row.

        Raises:
            NotFinite: for one more than that.
        """
        known = self.skipped
        try:
            return self._first_finite_update()
        except Exception:
            self.skipped = known  # the step was not made: whoever goes on passes its batches over again, and says so
            raise

    def _first_finite_update(self) -> Made:
        count = self.job.train.gradient_accumulation
        for left in reversed(range(self.job.train.skip_limit + 1)):
            first = (self.step + self.skipped) * count
            try:
                return self.update_with([self.order.micro_batch(first + k) for k in range(count)])
            except NotFinite as error:
                if not left:
                    raise
                self.skipped += 1
                self.run.append_metrics({"step": self.step + 1, "skipped": error.images, "not_finite": error.what})
                self.emit(Skipped(self.step + 1, error.what, tuple(error.images)))
        raise AssertionError("unreachable")

    def update_with(self, batches: Batches) -> Made:
        """One update on given micro-batches: the mean of the objective over all their samples."""
        made = self.updater.update(batches, self.step, self.step + self.skipped)
        if self.updater.pieces > 1:
            self.findings.add("batches were cut because memory was not enough")
        return made

    # --- what it tells and keeps -------------------------------------------------------------------------------------

    def report(self, made: Made, seconds: float) -> None:
        """Writes the metrics line and tells the listeners."""
        self.losses.append(made.loss)
        self._times.append(seconds)
        mean = sum(self._times) / len(self._times)
        steps, rate = self.job.train.steps, effective_rate(self.optimizer)
        memory = peak_memory(self.base.device)
        if self.step % self.job.train.log_every == 0 or self.step == steps:
            line: dict[str, Any] = {"step": self.step, "loss": made.loss, **made.parts, "lr": rate}
            line["grad_norm"] = made.norm
            if self.job.train.stage_boundaries:
                line["stage"] = self.objective.stages.stage(self.step + self.skipped - 1)
            self.run.append_metrics({**line, "seconds_per_step": round(seconds, 4), "peak_memory": memory})
        self.emit(StepDone(self.step, steps, made.loss, rate, mean, mean * (steps - self.step), memory, made.parts))

    def validate(self) -> None:
        """Measures the loss on held-out pictures, with the weights that the LoRA file would hold."""
        settings = self.job.validation
        with self._if_it_fits("validation"), suppress(Interrupted), self.weights(self.job.save.weights):
            loss = validation_loss(
                self.objective, settings.draws, self.job.train.batch_size, lambda: self.control.interrupts
            )
            self.run.append_metrics({"step": self.step, "validation_loss": loss})
            self.emit(ValidationDone(self.step, loss))

    def draw_samples(self) -> None:
        """Draws the job's previews."""
        with self._if_it_fits("previews"):
            draw_samples(self)

    @contextmanager
    def _if_it_fits(self, what: str) -> Iterator[None]:
        """For what training can do without: when memory is not enough for it, it is left out with a warning."""
        try:
            yield
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
        if not all(parameter.isfinite().all() for parameter in self.adapter.parameters()):
            raise TrainingError(
                f"step {self.step}: the LoRA's weights are not finite any more and are not saved. Lower "
                "train.learning_rate and resume from the last checkpoint, which is intact"
            )
        files = {"lora.safetensors": lora_file(self), "state.safetensors": state_file(self)}
        checkpoint = self.run.save_checkpoint(self.step, files)
        self.saved = self.step
        self.run.prune_checkpoints(self.job.save.keep, self.job.save.keep_best)
        self.run.write_status("running", self.step, self.job.train.steps)
        self.emit(CheckpointSaved(self.step, checkpoint.path))

    def _rescue(self) -> None:
        """Saves what a failure would lose, if it can be saved; the failure itself is what the user must hear of."""
        if self.updater.whole and self.step != self.saved:
            with suppress(FoundryError, OSError, RuntimeError):
                self.save()

    def restore(self, accept: Collection[str] = ()) -> None:
        """Goes on from the newest intact checkpoint, if there is one; `accept` as in `state.restore`."""
        restore(self, accept)

    # --- raw or averaged weights -------------------------------------------------------------------------------------

    def which(self, choice: str) -> str:
        """The weights that `auto`, `raw` or `ema` stands for."""
        return ("raw" if self.ema is None else "ema") if choice == "auto" else choice

    @contextmanager
    def weights(self, choice: str) -> Iterator[None]:
        """Puts the chosen weights into the adapter for a while."""
        if self.which(choice) == "ema" and self.ema is not None:
            with self.ema.applied():
                yield
        else:
            yield
