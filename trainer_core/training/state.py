"""What a checkpoint holds: the LoRA for ComfyUI, and all that training goes on from."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..adapters.comfy_format import to_comfy
from ..adapters.deltas import Deltas
from ..adapters.parsing import for_roots, parse
from ..errors import AdapterError, RunError
from ..safetensors_file import read_header, read_tensors, serialize

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..families.base import Base
    from ..runs.checkpoints import Checkpoint
    from .experts import Expert, Experts


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Updates made."""
    skipped: int = 0
    """Batches passed over so far. The next batch and all its draws are number `step + skipped` of the run."""
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    """Of the last steps, for their mean."""

    @property
    def number(self) -> int:
        """Of the next update, in the run's draws."""
        return self.step + self.skipped

    @property
    def mean_loss(self) -> float | None:
        """Over the last steps."""
        return sum(self.losses) / len(self.losses) if self.losses else None

    def state_dict(self) -> dict[str, str]:
        """As a checkpoint's metadata have it."""
        return {"step": str(self.step), "skipped": str(self.skipped), "losses": json.dumps(list(self.losses))}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """The inverse of `state_dict`."""
        self.step, self.skipped = int(state["step"]), int(state.get("skipped", 0))
        self.losses.clear()
        self.losses.extend(json.loads(state["losses"]))


def lora_files(experts: Experts, base: Base, job: JobConfig, metadata: dict[str, str]) -> dict[str, bytes]:
    """Name → LoRA file for ComfyUI of each expert, with the weights that `save.weights` asks for."""
    dtype: torch.dtype = getattr(torch, job.save.dtype)
    with experts.weights(job.save.weights):
        return {one.lora_file: serialize(to_comfy(one.adapter.deltas(), base, dtype), metadata) for one in experts}


def state_file(experts: Experts, progress: Progress, facts: Mapping[str, str]) -> bytes:
    """All that training needs to go on: fp32 weights, optimizers, moving averages, and what resuming compares."""
    tensors: dict[str, Tensor] = {}
    metadata = {**progress.state_dict(), **facts}
    for one in experts:
        own, values = one.updater.state_dict()
        tensors |= {_of(one, name): value for name, value in own.items()}
        metadata |= {_of(one, name): value for name, value in values.items()}
    return serialize(tensors, metadata)


def read_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of a checkpoint's state.

    Raises:
        RunError: if it is another step's.
    """
    metadata: dict[str, str] = read_header(checkpoint.state)["__metadata__"]
    if int(metadata["step"]) != checkpoint.step:
        raise RunError(f"{checkpoint.state}: is of step {metadata['step']}, its folder of {checkpoint.step}")
    return metadata


def load_state(checkpoint: Checkpoint, metadata: Mapping[str, str], experts: Experts, progress: Progress) -> None:
    """The inverse of `state_file`, bit for bit.

    Raises:
        AdapterError, RunError: if it is that of other layers, parameters or another optimizer.
    """
    tensors = read_tensors(checkpoint.state)
    for one in experts:
        prefix = _of(one, "")
        one.updater.load_state_dict(
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)},
            {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)},
        )
    progress.load_state_dict(metadata)


def _of(expert: Expert, name: str) -> str:
    return f"{expert.name}.{name}" if expert.name else name


def read_warm_start(job: JobConfig) -> Deltas | None:
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


def warm_start(job: JobConfig, base: Base, experts: Experts) -> None:
    """Starts from `adapter.warm_start`, if it is given.

    Raises:
        AdapterError: if the file does not fit.
    """
    deltas, file = read_warm_start(job), job.adapter.warm_start
    if deltas is None or file is None:
        return
    try:
        for one in experts:
            one.adapter.start_from(for_roots(deltas, one.adapter.roots, base))
    except AdapterError as error:
        raise AdapterError(_of_warm_start(file, error)) from None
    for one in experts:
        if one.updater.ema is not None:
            one.updater.ema.restart()


def _of_warm_start(file: str, error: AdapterError) -> str:
    return f"adapter.warm_start: {file}: {str(error).removeprefix(f'{file}: ')}"
