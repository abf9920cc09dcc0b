"""What a job is: the one source of fields, defaults, limits and descriptions, for YAML, nodes and tooltips.

Unknown keys are errors that name the nearest known one. A description is what a user reads in a tooltip, so it says
what the setting does and when to change it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
TimestepType = Literal["auto", "sigmoid", "linear", "shift"]

T = TypeVar("T", bound="Section")
_RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"com{k}" for k in range(1, 10)), *(f"lpt{k}" for k in range(1, 10))}


class Section(BaseModel):
    """A strict, immutable part of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def but(self, **changes: Any) -> Any:
        """A validated copy with some fields changed."""
        return validated(type(self), {**self.model_dump(mode="json"), **changes})


class ModelConfig(Section):
    """The base model and how it is loaded."""

    family: str = Field("flux1", description="Model family; `lora-foundry families` lists them.")
    source: str = Field(
        "embedded",
        description="Where the weights come from: `embedded` (the tiny base that ships with LoRA Foundry), a folder in "
        "diffusers layout, or a Hugging Face repository id (downloaded when the job starts).",
    )
    dtype: Precision = Field(
        "auto", description="Precision of the denoiser: auto is bfloat16 on a GPU that has it and float32 on a CPU."
    )
    text_encoder_dtype: Precision = Field("auto", description="Precision of the text encoders.")
    vae_dtype: Precision = Field("auto", description="Precision of the VAE; auto is float32, which loses nothing.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps …")


class AdapterConfig(Section):
    """The LoRA that is trained."""

    type: Literal["lora"] = Field("lora", description="Kind of adapter.")
    rank: int = Field(
        16, ge=1, le=1024, description="Size of the LoRA. 8 to 16 for a style, 16 to 32 for a character or an object."
    )
    alpha: float | None = Field(
        None, gt=0, description="Strength of the LoRA's output is alpha / rank. Empty: the same as rank, so 1."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the LoRA's inputs that is zeroed in each step.")
    targets: Literal["attention", "attention_mlp", "all"] = Field(
        "attention_mlp",
        description="Which layers are adapted: attention only, attention and feed-forward, or every linear layer of "
        "the blocks (modulation too).",
    )
    warm_start: str | None = Field(None, description="A LoRA file (.safetensors) to start from, of the same rank.")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


class DatasetConfig(Section):
    """One folder of images with captions."""

    folder: str = Field(description="Folder of images; captions lie beside them as text files with the same name.")
    resolutions: tuple[int, ...] = Field(
        (512, 768, 1024),
        min_length=1,
        description="Edge lengths in pixels; each image is cropped to a bucket of about that area in its own aspect. "
        "Images are never enlarged.",
    )
    weight: float = Field(
        1.0, gt=0, le=1000, description="How often this data set is drawn: 2 means every image twice an epoch."
    )
    caption_extension: str = Field("txt", pattern=r"^\.?\w{1,16}$", description="Extension of the caption files.")
    default_caption: str | None = Field(
        None, description="Caption of images that have none. Empty: a missing caption is an error."
    )
    flip_x: bool = Field(False, description="Mirror each image left to right half of the time.")
    trigger: str | None = Field(
        None,
        description="Word that calls what is learned. It replaces `[trigger]` in captions, or is added (see below).",
    )
    trigger_placement: Literal["start", "end", "only_placeholder"] = Field(
        "start", description="Where the trigger goes in captions that hold neither it nor `[trigger]`."
    )
    caption_dropout: float = Field(
        0.0, ge=0, le=1, description="Share of draws whose caption is dropped (to the trigger alone, or to nothing)."
    )
    shuffle_tags: bool = Field(False, description="Shuffle the comma-separated parts of captions.")
    keep_tags: int = Field(0, ge=0, description="How many leading parts stay in place when tags are shuffled.")

    @field_validator("resolutions", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("resolutions")
    @classmethod
    def _sensible(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 16 <= resolution <= 8192 for resolution in value):
            raise ValueError("resolutions lie between 16 and 8192 pixels")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _trigger_stays_whole(self) -> DatasetConfig:
        if self.shuffle_tags and self.trigger and "," in self.trigger:
            raise ValueError("a trigger with a comma would be torn apart by shuffle_tags: use one without")
        return self

    @field_validator("trigger", "default_caption")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value.strip() or None if value is not None else None


class TrainConfig(Section):
    """The training itself."""

    steps: int = Field(2000, ge=1, le=10_000_000, description="Number of optimizer steps.")
    batch_size: int = Field(1, ge=1, le=4096, description="Images in one forward pass.")
    gradient_accumulation: int = Field(
        1, ge=1, le=4096, description="Passes whose gradients are averaged into one step; costs time, not memory."
    )
    learning_rate: float = Field(1e-4, gt=0, le=10, description="Learning rate of the optimizer.")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the learning rate changes after warm-up: stays, or falls to 0 at the last step."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises from 0.")
    optimizer: Literal["adamw"] = Field("adamw", description="The optimizer.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of AdamW's first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of AdamW's second moment.")
    epsilon: float = Field(1e-8, gt=0, description="AdamW's denominator floor.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients are scaled down to this norm; 0 switches clipping off."
    )
    timestep_type: TimestepType = Field(
        "auto",
        description="How noise levels are drawn: sigmoid (most in the middle), linear (all alike), shift (as the "
        "sampler visits them, more high noise), auto (what the base was made with).",
    )
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: far less memory, about a third more time."
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Everything random in the run follows from it.")
    log_every: int = Field(1, ge=1, description="Steps between lines in metrics.jsonl.")


class SaveConfig(Section):
    """Checkpoints and the exported file."""

    every: int = Field(250, ge=1, description="Steps between checkpoints.")
    keep: int = Field(4, ge=1, description="How many step checkpoints are kept; the newest are.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the LoRA file; float32 keeps exactly what was trained."
    )


class SampleConfig(Section):
    """Preview pictures."""

    prompts: tuple[str, ...] = Field((), description="What the previews show; `[trigger]` is replaced.")
    every: int = Field(250, ge=1, description="Steps between previews.")
    before_training: bool = Field(True, description="Also draw the previews before the first step.")
    width: int | None = Field(None, ge=16, le=8192, description="Width in pixels. Empty: the family's own.")
    height: int | None = Field(None, ge=16, le=8192, description="Height in pixels. Empty: the family's own.")
    steps: int | None = Field(None, ge=1, le=1000, description="Sampling steps. Empty: the family's own.")
    guidance: float | None = Field(None, ge=0, le=100, description="Guidance scale. Empty: the family's own.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of the first preview.")
    walk_seed: bool = Field(True, description="Each further prompt uses the next seed.")


class JobConfig(Section):
    """A whole training job: what `job.yaml` holds."""

    name: str = Field(description="Name of the run and of the LoRA file: letters, digits, space, `.`, `_` and `-`.")
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1, description="The data sets.")
    train: TrainConfig = TrainConfig()
    save: SaveConfig = SaveConfig()
    sample: SampleConfig = SampleConfig()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        return plain_name(value)

    @model_validator(mode="after")
    def _warmup_fits(self) -> JobConfig:
        if self.train.warmup_steps > self.train.steps:
            raise ValueError("train.warmup_steps is larger than train.steps")
        return self

    @property
    def trigger(self) -> str | None:
        """The trigger of the first data set that has one."""
        return next((dataset.trigger for dataset in self.datasets if dataset.trigger), None)


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


def validated(section: type[T], data: Any) -> T:
    """Data as a section.

    Raises:
        ConfigError: with one line for each thing that is wrong, each naming its field.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # A list counts as too short when its only item is wrong: that follows from the item's error and says nothing.
        told = [one for one in found if not any(_is_inside(other["loc"], one["loc"]) for other in found)]
        raise ConfigError("\n".join(_explain(section, item) for item in told)) from None


def load_job(path: Path) -> JobConfig:
    """Reads a job from YAML. Relative folders are taken from the file's own folder.

    Raises:
        ConfigError: if the file is missing, is not YAML, or holds unknown or wrong settings.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. `lora-foundry init` writes a starter job") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a job is a mapping of settings, such as `name: my_lora`")
    try:
        job = validated(JobConfig, data)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
    return resolved(job, path.resolve().parent)


def resolved(job: JobConfig, here: Path) -> JobConfig:
    """The job with relative folders and files taken from `here`; a source that is no folder there stays as it is."""

    def absolute(text: str) -> Path:
        try:
            return here / Path(text).expanduser()
        except RuntimeError:  # the home of a user that there is not: whoever opens it says so
            return Path(text)

    datasets = tuple(dataset.but(folder=str(absolute(dataset.folder))) for dataset in job.datasets)
    model, adapter = job.model, job.adapter
    if model.source != "embedded" and absolute(model.source).is_dir():
        model = model.but(source=str(absolute(model.source)))
    if adapter.warm_start:
        adapter = adapter.but(warm_start=str(absolute(adapter.warm_start)))
    return job.model_copy(update={"datasets": datasets, "model": model, "adapter": adapter})


def dump_job(job: JobConfig) -> str:
    """A job as YAML that `load_job` reads back to the same job."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def description(section: type[Section], field: str) -> str:
    """The tooltip of a field."""
    return section.model_fields[field].description or ""


_PLAIN_WORDS = {
    "too_short": "needs at least one item",
    "tuple_type": "must be a list",
    "model_type": "must be a section with settings of its own",
}
"""What pydantic says in Python's terms, by its error type."""


def _is_inside(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _explain(section: type[BaseModel], error: Any) -> str:
    """One of pydantic's errors as a line that names the field and, for an unknown key, the nearest known one."""
    location = error["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        known = list(_section_at(section, location[:-1]).model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown setting; {hint}"
    if error["type"] == "missing":
        return f"{where}: is required"
    message = _PLAIN_WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    given = (
        "" if isinstance(error["input"], dict) or message in repr(error["input"]) else f" (given: {error['input']!r})"
    )
    return f"{where}: {message}{given}" if where else message


def _section_at(section: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
    """The section that a path of field names and indices leads to."""
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            kind: Any = section.model_fields[part].annotation
            kind = next((a for a in getattr(kind, "__args__", ()) if isinstance(a, type)), kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind
    return section
