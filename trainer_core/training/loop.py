"""The training loop. Data and base are prepared elsewhere; what a step minimises is in `objective/`."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..adapters.comfy_format import fitted, for_modules, parse, to_comfy
from ..adapters.lora import LoraAdapter
from ..adapters.metadata import lora_metadata
from ..adapters.safetensors_file import read_header, read_tensors, serialize
from ..data.batches import BatchOrder
from ..data.captions import choose
from ..data.images import png_bytes, to_image
from ..data.prepare import PreparedData
from ..data.scan import Sample
from ..errors import RunError, TrainingError
from ..families.base import stack_text
from ..families.device import peak_memory
from ..files import write_atomically
from ..objective.flow import noised, velocity
from ..randomness import normal_like, uniform
from ..sampling import Interrupted, SamplerSettings, autocast, draw
from .events import CheckpointSaved, Listener, SampleReady, StepDone, Warning
from .optimizers import learning_rate, load_optimizer, make_optimizer, optimizer_tensors
from .run_folder import RunFolder

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
        weights = [dataset.weight for dataset in job.datasets]
        self.order = BatchOrder(data.samples, weights, job.train.batch_size, job.train.seed)
        self.timestep_type = base.timestep_type if job.train.timestep_type == "auto" else job.train.timestep_type
        self.base_hash = base.source.fingerprint("transformer")
        self.step = 0
        self._losses: deque[float] = deque(maxlen=50)
        self._times: deque[float] = deque(maxlen=20)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains to the last step, or until a stop is asked for; saves in either case. True if it came to the end."""
        job = self.job
        if self.step == 0 and job.sample.before_training:
            self.draw_samples()
        while self.step < job.train.steps and not self.should_stop():
            started = time.perf_counter()
            loss, norm = self.update()
            self.step += 1
            self.report(loss, norm, time.perf_counter() - started)
            if self.step % job.save.every == 0 or self.step == job.train.steps:
                self.save()
            if self.step % job.sample.every == 0 or self.step == job.train.steps:
                self.draw_samples()
        if self.step and self.step != self._saved:
            self.save()
        return self.step == job.train.steps

    def update(self) -> tuple[float, float]:
        """One optimizer step over all its micro-batches; gives the loss and the gradients' norm before clipping."""
        config = self.job.train
        first = self.step * config.gradient_accumulation
        batches = [self.order.micro_batch(first + k) for k in range(config.gradient_accumulation)]
        return self.update_with(batches)

    def update_with(self, batches: list[list[Sample]]) -> tuple[float, float]:
        """One optimizer step on given micro-batches: the mean of the loss over all their samples."""
        config = self.job.train
        count = sum(len(batch) for batch in batches)
        seen: dict[str, int] = {}
        total = 0.0
        for k, batch in enumerate(batches):
            self.adapter.seed_dropout(config.seed, self.step, k)
            loss = self.losses(batch, seen).sum() / count
            if not math.isfinite(loss.item()):
                raise self._not_finite("loss", [batch])
            loss.backward()
            total += loss.item()
        parameters = self.adapter.parameters()
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
        if not math.isfinite(norm):  # the weights would be lost, and the next save would keep only that
            raise self._not_finite("gradient", batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, float(norm)

    def _not_finite(self, what: str, batches: list[list[Sample]]) -> TrainingError:
        names = ", ".join(sample.item.key for batch in batches for sample in batch)
        return TrainingError(
            f"step {self.step + 1}: the {what} is not finite (images: {names}). Lower train.learning_rate; what was "
            "saved before is intact"
        )

    def losses(self, batch: list[Sample], seen: dict[str, int]) -> Tensor:
        """The loss of each sample (N,), fp32.

        Every draw is a function of seed, step and sample, not of the sample's place in the batch; `seen` counts how
        often a sample has come in this step, so that it gets other noise each time.
        """
        clean, noise, u, texts = [], [], [], []
        for sample in batch:
            seen[sample.key] = seen.get(sample.key, 0) + 1
            place = (self.job.train.seed, self.step, sample.key, seen[sample.key])
            dataset = self.job.datasets[sample.dataset]
            flip = dataset.flip_x and uniform("flip", *place) < 0.5
            latents = self.data.latents(sample, flip)
            clean.append(latents.mean + latents.spread * normal_like(latents.mean.shape, "posterior", *place))
            noise.append(normal_like(latents.mean.shape, "noise", *place))
            u.append(uniform("timestep", *place))
            texts.append(self.data.text(choose(self.data.texts_of(sample), dataset, *place)))
        x, e = (torch.stack(tensors).to(self.base.device) for tensors in (clean, noise))
        tokens = self.base.image_tokens(*x.shape[2:])
        t = self.base.schedule.training_times(self.timestep_type, torch.tensor(u), tokens).to(self.base.device)
        with autocast(self.base):
            predicted = self.base.predict(self.denoiser, noised(x, e, t), t, stack_text(texts, self.base.device))
        return (predicted.float() - velocity(x, e)).square().flatten(1).mean(1)

    def report(self, loss: float, norm: float, seconds: float) -> None:
        """Writes the metrics line and tells the listeners."""
        self._losses.append(loss)
        self._times.append(seconds)
        mean = sum(self._times) / len(self._times)
        steps, rate, memory = (
            self.job.train.steps,
            learning_rate(self.step - 1, self.job.train),
            peak_memory(self.base.device),
        )
        if self.step % self.job.train.log_every == 0 or self.step == steps:
            self.run.append_metrics(
                {
                    "step": self.step,
                    "loss": loss,
                    "lr": rate,
                    "grad_norm": norm,
                    "seconds_per_step": round(seconds, 4),
                    "peak_memory": memory,
                }
            )
        self.emit(StepDone(self.step, steps, loss, rate, mean, mean * (steps - self.step), memory))

    # --- checkpoints -------------------------------------------------------------------------------------------------

    _saved = 0

    def save(self) -> None:
        """Saves a checkpoint of the updates made so far, then deletes the oldest beyond `save.keep`."""
        checkpoint = self.run.save_checkpoint(
            self.step, {"lora.safetensors": self.lora_file(), "state.safetensors": self.state_file()}
        )
        self._saved = self.step
        self.run.prune_checkpoints(self.job.save.keep)
        self.run.write_status("running", self.step, self.job.train.steps)
        self.emit(CheckpointSaved(self.step, checkpoint.path))

    def lora_file(self) -> bytes:
        """The LoRA for ComfyUI."""
        dtype: torch.dtype = getattr(torch, self.job.save.dtype)
        metadata = lora_metadata(
            self.job,
            self.base,
            step=self.step,
            loss=sum(self._losses) / len(self._losses) if self._losses else None,
            images=[len({sample.item.key for sample in group}) for group in self.data.samples],
            dataset_digest=self.data.digest(),
            base_hash=self.base_hash,
        )
        return serialize(to_comfy(self.adapter.weights(), self.job.adapter.scale, self.base, dtype), metadata)

    def state_file(self) -> bytes:
        """All that training needs to go on: fp32 weights, the optimizer's state, the losses of the running mean."""
        tensors, values = optimizer_tensors(self.optimizer)
        state = {f"adapter.{name}": value for name, value in self.adapter.state().items()}
        state |= {f"optimizer.{name}": value for name, value in tensors.items()}
        return serialize(state, {"step": str(self.step), "optimizer": values, "losses": json.dumps(list(self._losses))})

    def restore(self) -> None:
        """Goes on from the newest intact checkpoint, if there is one; else from `adapter.warm_start`, if given."""
        self.run.clear_leftovers()
        for damaged, problem in self.run.examine_checkpoints():
            if problem:
                self.emit(Warning(f"checkpoint {damaged.path.name} is damaged and not used: {problem}"))
        checkpoint = self.run.latest()
        if checkpoint is None:
            self._warm_start()
            self.run.truncate_metrics(0)
            return
        state, metadata = read_tensors(checkpoint.state), read_header(checkpoint.state)["__metadata__"]
        if int(metadata["step"]) != checkpoint.step:
            raise RunError(f"{checkpoint.state}: is of step {metadata['step']}, its folder of {checkpoint.step}")
        self.adapter.load(_below("adapter.", state))
        load_optimizer(self.optimizer, _below("optimizer.", state), metadata["optimizer"])
        self._losses.extend(json.loads(metadata["losses"]))
        self.step = self._saved = checkpoint.step
        self.run.truncate_metrics(self.step)

    def _warm_start(self) -> None:
        if not self.job.adapter.warm_start:
            return
        changes = for_modules(parse(read_tensors(Path(self.job.adapter.warm_start))), self.denoiser, self.base)
        state, config = self.adapter.state(), self.job.adapter
        for path, change in changes.items():
            if f"{path}.lora_A.weight" not in state:
                raise TrainingError(f"adapter.warm_start: the file adapts {path}, which this job's targets leave out")
            fresh = state[f"{path}.lora_A.weight"]
            state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"] = fitted(
                change, config.rank, config.scale, fresh
            )
        self.adapter.load(state)

    # --- previews ----------------------------------------------------------------------------------------------------

    def draw_samples(self) -> None:
        """Draws the job's previews with the weights as they are, and lets training go on undisturbed."""
        config = self.job.sample
        if not config.prompts:
            return
        settings = SamplerSettings.of(config, self.base)
        self.denoiser.eval()
        try:
            self.base.load_vae()
            for index, prompt in enumerate(config.prompts):
                text = self.job.trigger or ""
                texts = [self.data.text(prompt.replace("[trigger]", text))]
                seed = config.seed + index * config.walk_seed
                latents = draw(self.base, self.denoiser, texts, [seed], settings, self.data.text(""), self.should_stop)
                path = self.run.sample_folder(self.step) / f"{index:02d}.png"
                write_atomically(path, png_bytes(to_image(self.base.decode_latents(latents)[0])))
                self.emit(SampleReady(self.step, path, prompt, index))
        except Interrupted:
            return  # the loop sees the same request to stop
        finally:
            self.base.free_vae()
            self.denoiser.train()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
