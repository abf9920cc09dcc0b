"""What is asked of a job before anything is made for it."""

from __future__ import annotations

from .config import JobConfig
from .data.summary import summarize
from .errors import ConfigError
from .families.registry import open_base
from .sampling.controls import check_controls_of


def check_job(job: JobConfig) -> None:
    """Whether data, base and preview size of a job can be used; loads no weights.

    Raises:
        FoundryError: what is wrong with them.
    """
    from .data.prepare import check_controls
    from .memory.recovery_file import check_recovery
    from .sampling.sampler import SamplerSettings
    from .training.experts import stages_of
    from .training.optimizers import check_optimizer, text_ratio
    from .training.state import read_warm_start
    from .training.step import timesteps_of

    base = open_base(job.model)
    base.check_parts()
    check_optimizer(job.train, base.device)
    if job.adapter.text_encoders:
        text_ratio(job.train)
    check_controls(job, base.spec)
    check_controls_of(job.sample, base.spec)
    base.spec.check_adapter(job.adapter)
    check_recovery(job.model)
    if job.model.low_rank and job.model.quantization == "none":
        raise ConfigError("model.low_rank: the base is not quantized, and all of it is precise. Set model.quantization")
    read_warm_start(job)
    timesteps_of(job, base).check(base.schedule)
    stages_of(job, base.spec)
    for dataset in job.datasets:
        summarize(dataset, base.spec)
    SamplerSettings.of(job.sample, base)
