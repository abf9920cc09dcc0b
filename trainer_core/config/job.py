"""A whole job, and its YAML."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from ..errors import ConfigError
from ..reading import is_file, is_folder, read_regular
from ..secrets import redacted
from .data import CacheConfig, DatasetConfig
from .memory import MemoryConfig
from .model import AdapterConfig, ModelConfig
from .model_files import SOURCE, model_file
from .objective import RegularizationConfig, ValidationConfig
from .output import SampleConfig, SaveConfig
from .section import Section, empty_is_none, validated
from .train import TrainConfig
from .yaml_text import LIMIT, dump_yaml, read_yaml

_RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"com{k}" for k in range(1, 10)), *(f"lpt{k}" for k in range(1, 10))}


class JobConfig(Section):
    """A whole training job: what `job.yaml` holds."""

    name: str = Field(description="Name of the run and of the LoRA file: letters, digits, space, `.`, `_` and `-`.")
    trigger: str | None = Field(
        None, description="Word that calls what is learned, for all training sets that have none of their own."
    )
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1, description="The data sets.")
    train: TrainConfig = TrainConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    validation: ValidationConfig = ValidationConfig()
    save: SaveConfig = SaveConfig()
    sample: SampleConfig = SampleConfig()
    cache: CacheConfig = CacheConfig()
    memory: MemoryConfig = MemoryConfig()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        return plain_name(value)

    @field_validator("trigger")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return empty_is_none(value)

    @model_validator(mode="before")
    @classmethod
    def _hand_down_the_trigger(cls, data: Any) -> Any:
        """The job's trigger becomes that of data sets without one, so that a set alone says all about its captions."""
        if not isinstance(data, dict) or not data.get("trigger") or not isinstance(data.get("datasets"), list | tuple):
            return data
        return {**data, "datasets": [_with_trigger(one, data["trigger"]) for one in data["datasets"]]}

    @model_validator(mode="after")
    def _parts_fit(self) -> JobConfig:
        if self.train.warmup_steps > self.train.steps:
            raise ValueError("train.warmup_steps is larger than train.steps")
        roles = {dataset.role for dataset in self.datasets}
        if "train" not in roles:
            raise ValueError("datasets: none has the role train")
        if self.regularization.output_preservation and self.preview_trigger is None:
            raise ValueError(
                "regularization.output_preservation puts the class word in the trigger's place: set a trigger"
            )
        if self.validation.every and not self.validation.share and "validation" not in roles:
            raise ValueError(
                "validation.every: there is nothing to validate on; set validation.share, or give a data set the role "
                "validation"
            )
        if len(self.sample.controls) > 1 and len(self.sample.controls) != len(self.sample.prompts):
            raise ValueError(
                f"sample.controls: {len(self.sample.controls)} for {len(self.sample.prompts)} prompts; give one for "
                "all, or one for each"
            )
        if self.memory.compile and self.adapter.dropout:
            raise ValueError("memory.compile: dropout would be compiled anew in each step; set adapter.dropout to 0")
        averaged = [part for part in ("save", "sample") if getattr(self, part).weights == "ema"]
        if averaged and self.train.ema_decay is None:
            raise ValueError(f"{averaged[0]}.weights: ema needs train.ema_decay")
        return self

    @property
    def preview_trigger(self) -> str | None:
        """What `[trigger]` stands for in prompts: the job's own, or that of the first data set that has one."""
        return self.trigger or next((dataset.trigger for dataset in self.datasets if dataset.trigger), None)


def _with_trigger(dataset: Any, trigger: str) -> Any:
    given = dataset.model_dump(mode="json") if isinstance(dataset, DatasetConfig) else dataset
    if not isinstance(given, dict) or given.get("role") == "regularization":
        return dataset
    own = given.get("trigger")
    if own is not None and (not isinstance(own, str) or own.strip()):
        return dataset
    return {**given, "trigger": trigger}


def plain_name(value: str) -> str:
    """The name if it can be a file name on every system.

    Raises:
        ValueError: for path separators, `..`, reserved Windows names and anything but letters, digits, ` ._-`.
    """
    name = value.strip()
    if "/" in name or "\\" in name:
        raise ValueError(f"a LoRA's name must not hold path separators: {value!r}. Choose a plain name")
    if not re.fullmatch(r"[^\W_][\w .\-]{0,99}", name) or name.endswith("."):
        raise ValueError(
            f"{value!r} cannot be a file name: start with a letter or digit, go on with letters, digits, spaces, `.`, "
            "`_` or `-`, at most 100 characters"
        )
    if name.split(".")[0].lower() in _RESERVED_NAMES:
        raise ValueError(f"{value!r} is a reserved name on Windows. Choose another")
    return name


def load_job(path: Path) -> JobConfig:
    """Reads a job from YAML. Relative folders are taken from the file's own folder.

    Raises:
        ConfigError: if the file is missing, is not YAML as `read_yaml` takes it, or holds unknown or wrong settings.
    """
    try:
        text = read_regular(path, LIMIT).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. `lora-foundry init` writes a starter job") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        data = read_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {redacted(str(error))}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a job is a mapping of settings, such as `name: my_lora`")
    try:
        job = validated(JobConfig, data)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
    return resolved(job, path.resolve().parent)


def resolved(job: JobConfig, here: Path) -> JobConfig:
    """The job with relative folders and files taken from `here`; its model as `resolved_model`."""
    absolute = partial(_absolute, here)
    datasets = tuple(
        dataset.but(
            folder=str(absolute(dataset.folder)),
            mask_folder=str(absolute(dataset.mask_folder)) if dataset.mask_folder else None,
            control_folders=[str(absolute(folder)) for folder in dataset.control_folders],
        )
        for dataset in job.datasets
    )
    model, adapter = resolved_model(job.model, here), job.adapter
    if adapter.warm_start:
        adapter = adapter.but(warm_start=str(absolute(adapter.warm_start)))
    sample = job.sample.model_copy(
        update={"controls": tuple(tuple(str(absolute(file)) for file in files) for files in job.sample.controls)}
    )
    return job.model_copy(update={"datasets": datasets, "model": model, "adapter": adapter, "sample": sample})


def resolved_model(model: ModelConfig, here: Path) -> ModelConfig:
    """The model with relative files taken from `here`, or from a host's folders (`model_files`) where they are not.

    A source that is in neither stays as it is: it may be a repository.
    """
    source = _absolute(here, model.source)
    if model.source != "embedded":
        found = source if is_folder(source) or is_file(source) else model_file(SOURCE, model.source)
        model = model.but(source=str(found or model.source))
    files = {}
    for part, name in model.files.items():
        own = _absolute(here, name)
        files[part] = str(own if is_file(own) else model_file(part, name) or own)
    tokenizers = str(_absolute(here, model.tokenizers)) if model.tokenizers else None
    recovery = str(_absolute(here, model.recovery_adapter)) if model.recovery_adapter else None
    absolute: ModelConfig = model.but(files=files, tokenizers=tokenizers, recovery_adapter=recovery)
    return absolute


def _absolute(here: Path, text: str) -> Path:
    try:
        return here / Path(text).expanduser()
    except RuntimeError:  # the home of a user that there is not: whoever opens it says so
        return Path(text)


def dump_job(job: JobConfig) -> str:
    """A job as YAML that `load_job` reads back to the same job."""
    return dump_yaml(job.model_dump(mode="json"))
