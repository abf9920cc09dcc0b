"""The job that Train LoRA's sockets and widgets describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..trainer_core.api import PLACEHOLDER
from ..trainer_core.config import AdapterConfig, DatasetConfig, JobConfig, ModelConfig, validated
from .setting import Values, values
from .settings import TRAIN_LORA


def job_config(
    name: str,
    base: ModelConfig,
    lora: AdapterConfig,
    datasets: Sequence[DatasetConfig],
    prompts: Sequence[str],
    shown: Mapping[str, Any],
    linked: Sequence[Values],
) -> JobConfig:
    """The whole job.

    Args:
        shown: values of Train LoRA's own widgets.
        linked: what the nodes with further settings gave.

    Raises:
        ConfigError: if the settings are wrong or do not fit together.
    """
    parts: Values = {"sample": {"prompts": list(prompts)}}
    for source in (values(TRAIN_LORA, shown), *linked):
        for part, fields in source.items():
            parts[part] = {**parts.get(part, {}), **fields}
    job = {**parts, "name": name, "model": base, "adapter": lora, "datasets": list(datasets)}
    return validated(JobConfig, job)


def notes(job: JobConfig) -> list[str]:
    """What a user may not have meant, though it can be trained."""
    found = []
    if not job.sample.prompts:
        found.append("sample_prompts is empty: no samples are drawn")
    texts = (*job.sample.prompts, job.sample.negative_prompt)
    if job.preview_trigger is None and any(PLACEHOLDER in text for text in texts):
        found.append(f"{PLACEHOLDER} is taken out of the sample prompts: no trigger is set in Caption with Trigger")
    return found
