"""`lora-foundry recover`: from a job, or a base alone, to a recovery adapter's file."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import JobConfig
from ..errors import ConfigError
from ..families.registry import job_with_family, open_base

if TYPE_CHECKING:
    from ..data.cache import TensorCache
    from ..data.progress import Progress
    from .recovery import Recovered


@dataclass(frozen=True)
class RecoverySettings:
    """How an adapter is made."""

    rank: int = 16
    batches: int = 16
    """Of the job's data, of its batch size; half as many more measure the errors."""
    steps: int = 100
    """Of Adam for each block; 0: the closed form alone."""
    whole_steps: int = 200
    """Of Adam for all blocks at once, which takes as much memory as training does; 0: none."""


def make_recovery(
    job: JobConfig, settings: RecoverySettings, cache: TensorCache, folder: Path, progress: Progress
) -> tuple[Path, Recovered]:
    """Makes a recovery adapter for a job's base as the job holds it, on the job's data.

    Returns:
        The file, `<job>_<quantization>_recovery.safetensors` in the folder, and what it achieves.

    Raises:
        ConfigError: if the base is not quantized, or has several denoisers.
        FoundryError: if base or data cannot be used, or the file cannot be written.
    """
    import torch

    from .calibration import probes_of
    from .recovery import recover
    from .recovery_file import Facts, write_recovery

    job = job_with_family(job)
    model = job.model.but(recovery_adapter=None)
    if model.quantization == "none":
        raise ConfigError("model.quantization: is none, so there is nothing to recover. Choose 4bit, 3bit or 2bit")
    rank = model.low_rank or settings.rank
    with torch.inference_mode(False), closing(open_base(model)) as base:
        if len(base.spec.experts) > 1:
            raise ConfigError(f"{base.spec.title} has several denoisers, for which no recovery adapters are made yet")
        probes = probes_of(job, base, cache, settings.batches + (settings.batches + 1) // 2, progress)
        progress("loading the base", 0, 1)
        with closing(open_base(model.but(quantization="none", low_rank=0))) as whole:
            recovered = recover(
                base,
                base.load_denoiser(),
                whole,
                whole.load_denoiser_on_host(),
                probes[: settings.batches],
                probes[settings.batches :],
                rank,
                settings.steps,
                settings.whole_steps,
                progress,
            )
        facts = Facts(
            model.quantization,
            model.low_rank,
            rank,
            base.denoiser_fingerprint(),
            round(recovered.before, 6),
            round(recovered.after, 6),
        )
        name = f"{job.name}_{model.quantization}_recovery"
        return write_recovery(folder, name, recovered.branches, base, facts), recovered
