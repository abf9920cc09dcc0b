"""What a checkpoint holds of a trainer, and how it gets back in."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..adapters.comfy_format import Changes, for_roots, parse, to_comfy
from ..adapters.metadata import lora_metadata
from ..errors import AdapterError, RunError
from ..runs.events import Warning
from ..safetensors_file import read_header, read_tensors, serialize
from .optimizers import load_optimizer, optimizer_tensors
from .previews import forget_samples
from .resume_rules import check_resume, facts, sampled_hashes

if TYPE_CHECKING:
    from ..config import JobConfig
    from .loop import Trainer


def lora_file(trainer: Trainer) -> bytes:
    """The LoRA for ComfyUI, of the weights that `save.weights` asks for."""
    job = trainer.job
    dtype: torch.dtype = getattr(torch, job.save.dtype)
    losses = trainer.losses
    metadata = lora_metadata(
        job,
        trainer.base,
        step=trainer.step,
        loss=sum(losses) / len(losses) if losses else None,
        weights=trainer.which(job.save.weights),
        images=[len({sample.item.key for sample in group}) for group in trainer.data.samples],
        dataset_digest=trainer.digests["dataset_digest"],
        base_hash=trainer.digests["base_hash"],
        deterministic=trainer.findings.summary(),
    )
    with trainer.weights(job.save.weights):
        changes = trainer.adapter.changes()
    return serialize(to_comfy(changes, trainer.base, dtype), metadata)


def state_file(trainer: Trainer) -> bytes:
    """All that training needs to go on: fp32 weights, optimizer, moving average, the losses of the running mean."""
    tensors, values = optimizer_tensors(trainer.optimizer)
    state = {f"adapter.{name}": value for name, value in trainer.adapter.state().items()}
    state |= {f"optimizer.{name}": value for name, value in tensors.items()}
    if trainer.ema is not None:
        state |= {f"ema.{name}": value for name, value in trainer.ema.state().items()}
    metadata = {
        "step": str(trainer.step),
        "skipped": str(trainer.skipped),
        "pieces": str(trainer.updater.pieces),
        **({} if trainer.updater.scale is None else {"loss_scale": str(trainer.updater.scale)}),
        "optimizer": values,
        "losses": json.dumps(list(trainer.losses)),
        "findings": trainer.findings.dumps(),
        **facts(trainer),
    }
    return serialize(state, metadata)


def restore(trainer: Trainer, accept: Collection[str] = ()) -> None:
    """Goes on from the newest intact checkpoint, if there is one; else from `adapter.warm_start`, if given.

    Args:
        accept: what may differ from the checkpoint by the user's explicit wish (`resume_rules`).

    Raises:
        ConfigError: if the job, its data or its base are not those of the checkpoint.
    """
    run = trainer.run
    checkpoint = run.latest()
    if checkpoint is None:
        _warm_start(trainer)
        run.truncate_metrics(-1)  # the baseline at step 0 is measured again
        forget_samples(run, -1)
        return
    state, metadata = read_tensors(checkpoint.state), read_header(checkpoint.state)["__metadata__"]
    if int(metadata["step"]) != checkpoint.step:
        raise RunError(f"{checkpoint.state}: is of step {metadata['step']}, its folder of {checkpoint.step}")
    trainer.findings.loads(metadata.get("findings", ""))
    now = {**facts(trainer), **sampled_hashes(trainer.base)}
    for note in check_resume(now, metadata, accept):
        trainer.emit(Warning(note))
        # the note itself names the machine and its folders, which is nothing for a LoRA's metadata
        trainer.findings.add(f"settings, data or environment changed after step {checkpoint.step}")
    trainer.adapter.load(_below("adapter.", state))
    load_optimizer(trainer.optimizer, _below("optimizer.", state), metadata["optimizer"])
    if trainer.ema is not None:
        trainer.ema.load(_below("ema.", state))
    trainer.losses.extend(json.loads(metadata["losses"]))
    trainer.step = trainer.saved = checkpoint.step
    trainer.skipped = int(metadata.get("skipped", 0))
    trainer.updater.pieces = int(metadata.get("pieces", 1))
    if trainer.updater.scale is not None:
        trainer.updater.scale = int(metadata.get("loss_scale", trainer.updater.scale))
    run.truncate_metrics(trainer.step)
    forget_samples(run, trainer.step)


def read_warm_start(job: JobConfig) -> Changes | None:
    """The layers of the LoRA that a job starts from, by their names in its file; None if it starts anew.

    Raises:
        AdapterError: if the file cannot be read or is no LoRA.
    """
    file = job.adapter.warm_start
    if not file:
        return None
    try:
        return parse(read_tensors(Path(file)))
    except AdapterError as error:
        raise AdapterError(_of_warm_start(file, error)) from None


def _warm_start(trainer: Trainer) -> None:
    changes, file = read_warm_start(trainer.job), trainer.job.adapter.warm_start
    if changes is None or file is None:
        return
    try:
        trainer.adapter.start_from(for_roots(changes, trainer.adapter.roots, trainer.base))
    except AdapterError as error:
        raise AdapterError(_of_warm_start(file, error)) from None
    if trainer.ema is not None:
        trainer.ema.restart()


def _of_warm_start(file: str, error: AdapterError) -> str:
    return f"adapter.warm_start: {file}: {str(error).removeprefix(f'{file}: ')}"


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
