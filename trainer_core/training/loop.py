"""The training loop. Data and base are prepared elsewhere; what a step minimises is in `step.py` and `objective/`."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..adapters.lora import LoraAdapter
from ..data.batches import BatchOrder
from ..data.prepare import PreparedData
from ..data.scan import Sample
from ..errors import TrainingError
from ..families.device import peak_memory
from ..sampling import Interrupted
from .advice import advice
from .ema import EMA
from .events import CheckpointSaved, Listener, StepDone, ValidationDone, Warning
from .lr_schedules import learning_rate
from .optimizers import effective_rate, make_optimizer
from .previews import draw_samples
from .run_folder import RunFolder
from .state import lora_file, restore, state_file
from .step import MAIN, Objective
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
        should_stop: Callable[[], bool],
    ) -> None:
        self.run, self.job, self.base, self.data = run, job, base, data
        self.emit, self.should_stop = emit, should_stop
        self.denoiser = base.load_denoiser().train()
        self.adapter = LoraAdapter(self.denoiser, job.adapter, base.spec.targets[job.adapter.targets], job.train.seed)
        if job.train.gradient_checkpointing:
            cast(Any, self.denoiser).enable_gradient_checkpointing()  # every diffusers model has it
        self.optimizer = make_optimizer(self.adapter.parameters(), job.train)
        decay = job.train.ema_decay
        self.ema = None if decay is None else EMA(self.adapter.parameters(), decay, job.train.ema_warmup)
        train = job.train
        self.order = BatchOrder(data.samples, job.datasets, train.batch_size, train.seed, job.regularization.ratio)
        self.objective = Objective(job, base, data, self.denoiser, self.adapter)
        self.base_hash = base.source.fingerprint("transformer")
        self.step = self.saved = 0
        for hint in advice(job):
            emit(Warning(hint))
        self.losses: deque[float] = deque(maxlen=50)
        self._times: deque[float] = deque(maxlen=20)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains to the last step, or until a stop is asked for; saves in either case. True if nothing is left to do.

        A stop leaves out the measurements and previews that were due; the resumed run makes up for them first.
        """
        job = self.job
        if self._lacks_validation():
            self.validate()
        if self._lacks_samples():
            draw_samples(self)
        while self.step < job.train.steps and not self.should_stop():
            started = time.perf_counter()
            loss, norm, parts = self.update()
            self.step += 1
            self.report(loss, norm, parts, time.perf_counter() - started)
            if self._is_due(job.validation.every):
                self.validate()
            if self._is_due(job.save.every):
                self.save()
            if self._is_due(job.sample.every):
                draw_samples(self)
        if self.step and self.step != self.saved:
            self.save()
        return self.step == job.train.steps and not self._lacks_validation() and not self._lacks_samples()

    def _lacks_validation(self) -> bool:
        """Whether the weights as they are should have been measured (at step 0: the base alone) and were not."""
        every = self.job.validation.every
        wanted = every > 0 if self.step == 0 else self._is_due(every)
        return wanted and not any("validation_loss" in line for line in self.run.metrics() if line["step"] == self.step)

    def _lacks_samples(self) -> bool:
        config = self.job.sample
        wanted = config.before_training if self.step == 0 else self._is_due(config.every)
        return wanted and len(self.run.sample_paths(self.step)) < len(config.prompts)

    def _is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now; 0 is never."""
        return every > 0 and (self.step % every == 0 or self.step == self.job.train.steps)

    def update(self) -> tuple[float, float, dict[str, float]]:
        """One optimizer step over all its micro-batches; see `update_with`."""
        config = self.job.train
        first = self.step * config.gradient_accumulation
        return self.update_with([self.order.micro_batch(first + k) for k in range(config.gradient_accumulation)])

    def update_with(self, batches: list[list[Sample]]) -> tuple[float, float, dict[str, float]]:
        """One optimizer step on given micro-batches: the mean of the objective over all their samples.

        Gives the loss, the gradients' norm before clipping, and the other terms of the objective by name.
        """
        config = self.job.train
        count = sum(len(batch) for batch in batches)
        seen: dict[str, int] = {}
        shown: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            for term in self.objective.terms(batch, self.step, number, seen):
                (term.minimised.sum() / count).backward()
                shown[term.name] = shown.get(term.name, 0.0) + term.shown.sum() / count
        norm = nn.utils.clip_grad_norm_(self.adapter.parameters(), config.max_grad_norm or math.inf)
        # one wait for the device per step: all numbers come over together
        values = dict(zip(shown, torch.stack([*shown.values()]).tolist(), strict=True))
        loss, total = values.pop(MAIN), float(norm)
        if not math.isfinite(loss + total):  # the weights would be lost, and the next save would keep only that
            raise self._not_finite("gradient" if math.isfinite(loss) else "loss", batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return loss, total, values

    def _not_finite(self, what: str, batches: list[list[Sample]]) -> TrainingError:
        names = ", ".join(sample.item.key for batch in batches for sample in batch)
        return TrainingError(
            f"step {self.step + 1}: the {what} is not finite (images: {names}). Lower train.learning_rate; what was "
            "saved before is intact"
        )

    # --- what it tells and keeps -------------------------------------------------------------------------------------

    def report(self, loss: float, norm: float, parts: dict[str, float], seconds: float) -> None:
        """Writes the metrics line and tells the listeners."""
        self.losses.append(loss)
        self._times.append(seconds)
        mean = sum(self._times) / len(self._times)
        steps, rate = self.job.train.steps, effective_rate(self.optimizer)
        memory = peak_memory(self.base.device)
        if self.step % self.job.train.log_every == 0 or self.step == steps:
            line: dict[str, Any] = {"step": self.step, "loss": loss, **parts, "lr": rate, "grad_norm": norm}
            if self.job.train.stage_boundaries:
                line["stage"] = self.objective.stages.stage(self.step - 1)
            self.run.append_metrics({**line, "seconds_per_step": round(seconds, 4), "peak_memory": memory})
        self.emit(StepDone(self.step, steps, loss, rate, mean, mean * (steps - self.step), memory, parts))

    def validate(self) -> None:
        """Measures the loss on held-out pictures, with the weights that the LoRA file would hold."""
        settings = self.job.validation
        try:
            with self.weights(self.job.save.weights):
                loss = validation_loss(self.objective, settings.draws, self.job.train.batch_size, self.should_stop)
        except Interrupted:
            return  # the loop sees the same request to stop
        self.run.append_metrics({"step": self.step, "validation_loss": loss})
        self.emit(ValidationDone(self.step, loss))

    def save(self) -> None:
        """Saves a checkpoint of the updates made so far, then deletes the oldest beyond `save.keep`."""
        checkpoint = self.run.save_checkpoint(
            self.step, {"lora.safetensors": lora_file(self), "state.safetensors": state_file(self)}
        )
        self.saved = self.step
        self.run.prune_checkpoints(self.job.save.keep)
        self.run.write_status("running", self.step, self.job.train.steps)
        self.emit(CheckpointSaved(self.step, checkpoint.path))

    def restore(self) -> None:
        """Goes on from the newest intact checkpoint, if there is one."""
        restore(self)

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
