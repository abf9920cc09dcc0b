"""A LoRA that a user names, a run's or a file, with what it says of its base and of how it is drawn with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapters.export import describe_lora
from .config import JobConfig, ModelConfig, SampleConfig, resolved_model, validated
from .errors import ConfigError
from .families.registry import family_names, family_spec, spec_of
from .families.sources.source import is_repository_id
from .reading import parse_json
from .runs.find import find_checkpoint, find_run_or_file
from .runs.run_folder import RunFolder
from .sampling.controls import PromptControls, check_controls_of, of_job, of_settings

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class FoundLora:
    """A LoRA and what is known of it."""

    path: Path
    name: str
    """A run's, or the file's without its suffix; what is made of the LoRA is called after it."""
    model: ModelConfig
    sample: SampleConfig
    """How its run drew previews."""
    trigger: str | None
    job: JobConfig | None = None
    """A run's; None of a file."""

    def controls(
        self, count: int, given: Sequence[Sequence[str]] = (), own_prompts: bool = True
    ) -> list[PromptControls]:
        """The control images for each of so many prompts: those given, else the run's own.

        Args:
            own_prompts: the prompts are the run's; to others, those of its control images that belong to one prompt
                each do not belong.

        Raises:
            ConfigError: if they are not there, or do not fit the family or the prompts.
            DatasetError: if they would be those of the run's data, and that is not there any more.
        """
        sample, spec = self.sample, spec_of(self.model)
        if given:
            sample = sample.but(controls=given)
        elif not own_prompts and len(sample.controls) > 1:
            sample = sample.but(controls=())
        check_controls_of(sample, spec)
        if self.job is None or sample.controls:
            return of_settings(sample, count)
        return of_job(self.job.model_copy(update={"sample": sample}), spec, count)


def find_lora(
    name: str, runs: Path, which: str | int | None = None, base: Mapping[str, Any] | None = None
) -> FoundLora:
    """The LoRA that a user names: a run under the runs folder, a run's folder, or a file of any tool.

    Args:
        which: of a run, as in `find_checkpoint`; None is the latest.
        base: fields of `ModelConfig` that the user gives; the rest is the run's or what the file says.

    Raises:
        RunError: if there is none of that name, or no such checkpoint.
        ConfigError: if `which` is given for a file, or a file does not say its base and `base` has no source.
        AdapterError: if the file holds no LoRA.
    """
    base, found = dict(base or {}), find_run_or_file(name, runs)
    if isinstance(found, RunFolder):
        checkpoint, job = find_checkpoint(found, which or "latest"), found.job()
        called = found.name if which in (None, "latest") else f"{found.name}_{checkpoint.step}_steps"
        return FoundLora(checkpoint.lora, called, _changed(job.model, base), job.sample, job.preview_trigger, job)
    if which is not None:
        raise ConfigError("--step: chooses a checkpoint of a run; this is a file")
    facts, called = describe_lora(found), found.name.removesuffix(".safetensors")
    if "source" in base:
        model = _changed(ModelConfig(family=_family_of_file(facts["metadata"])), base)
        return FoundLora(found, called, model, SampleConfig(), facts["trigger"])
    job = _job_of_file(found, facts["metadata"])
    # of control images the file tells the names alone
    sample = job.sample.but(controls=())
    return FoundLora(found, called, _changed(job.model, base), sample, job.preview_trigger)


def _changed(model: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
    """A base with the fields that the user gives; files that are not given stay."""
    changed: ModelConfig = model.but(**{**given, "files": {**model.files, **given.get("files", {})}})
    return resolved_model(changed, Path.cwd())


def _job_of_file(path: Path, metadata: dict[str, str]) -> JobConfig:
    """The job that a LoRA file of ours was trained with.

    Raises:
        ConfigError: if the file says none, or names a base by a folder: which one is not a file's to say, least of all
            one on another machine (`//server/share`).
    """
    told = metadata.get("lora_foundry.config")
    if told is None:
        raise ConfigError(f"{path} does not say which base model it belongs to: name it with --base")
    try:
        job = validated(JobConfig, parse_json(told))
    except ValueError as error:
        raise ConfigError(f"{path} tells its settings wrongly ({error}): name its base with --base") from None
    source = job.model.source
    if source != "embedded" and not is_repository_id(source):
        raise ConfigError(f"{path} belongs to a base model in a folder called {source!r}: say where it is with --base")
    return job


def _family_of_file(metadata: dict[str, str]) -> str:
    """The family that a LoRA file is for, if it says so in a way that can be believed; else the base's own."""
    told: object = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        told = parse_json(metadata["lora_foundry.config"])["model"]["family"]
    names = family_names()
    if isinstance(told, str) and told in names:
        return told
    version = metadata.get("ss_base_model_version")  # kohya's word for it
    known = {family_spec(name).base_model_version: name for name in reversed(names)}
    return known.get(version or "-", ModelConfig().family)
