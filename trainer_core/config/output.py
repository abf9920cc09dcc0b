"""What a run writes: checkpoints, the exported file, preview pictures."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from .section import Section

Weights = Literal["auto", "raw", "ema"]
_WEIGHTS = "Weights %s: raw as trained, or their moving average (ema); auto is ema where train.ema_decay is set."


class SaveConfig(Section):
    """Checkpoints and the exported file."""

    every: int = Field(250, ge=1, description="Steps between checkpoints.")
    keep: int = Field(4, ge=1, description="How many step checkpoints are kept; the newest are.")
    keep_best: bool = Field(
        True, description="Also keep the checkpoint with the lowest validation loss, however old it is."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the LoRA file; float32 keeps exactly what was trained."
    )
    weights: Weights = Field("auto", description=_WEIGHTS % "that the LoRA file holds")


class SampleConfig(Section):
    """Preview pictures."""

    prompts: tuple[str, ...] = Field((), description="What the previews show; `[trigger]` is replaced.")
    every: int = Field(250, ge=1, description="Steps between previews.")
    before_training: bool = Field(True, description="Also draw the previews before the first step.")
    width: int | None = Field(None, ge=16, le=8192, description="Width in pixels. Empty: the family's own.")
    height: int | None = Field(None, ge=16, le=8192, description="Height in pixels. Empty: the family's own.")
    steps: int | None = Field(None, ge=1, le=1000, description="Sampling steps. Empty: the family's own.")
    guidance: float | None = Field(None, ge=0, le=100, description="Guidance scale. Empty: the family's own.")
    sampler: str | None = Field(
        None, description="ComfyUI's sampler, for models that ComfyUI has loaded, such as euler. Empty: euler."
    )
    scheduler: str | None = Field(
        None, description="ComfyUI's scheduler, for the same, such as simple. Empty: what suits the model."
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of the first preview.")
    walk_seed: bool = Field(True, description="Each further prompt uses the next seed.")
    negative_prompt: str = Field("", description="What previews keep away from, where guidance takes a second pass.")
    weights: Weights = Field("auto", description=_WEIGHTS % "that previews are drawn with")
    controls: tuple[tuple[str, ...], ...] = Field(
        (),
        description="Control images of the previews, for edit models: an image file for all prompts, or one for each; "
        "for several images at once, a list of files in its place. They are cropped to the preview's size. Empty: "
        "those of the first training images. For models that go on from an image, the first file is that image; empty: "
        "the first frames of the first training clips.",
    )
    frames: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Frames of each preview of a video model, such as 4n + 1 or 8n + 1. Empty: the family's own.",
    )

    @field_validator("controls", mode="before")
    @classmethod
    def _one_file_is_a_list_of_one(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [[one] if isinstance(one, str) else one for one in value]

    @field_validator("controls")
    @classmethod
    def _files_are_named(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if not all(file.strip() for files in value for file in files):
            raise ValueError("a file has no name; leave the whole setting empty for none")
        return value
