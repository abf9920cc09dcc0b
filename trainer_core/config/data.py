"""Data sets and their cache."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .section import Section, empty_is_none

MAX_CONTROLS = 3
"""Control images per target."""


class DatasetConfig(Section):
    """One folder of images or clips with captions."""

    folder: str = Field(
        description="Folder of images; captions lie beside them as text files with the same name, or in a "
        "`metadata.jsonl` or `metadata.csv`."
    )
    role: Literal["train", "regularization", "validation"] = Field(
        "train",
        description="What the set is for: train; regularization (pictures of the class that keep the model from "
        "drifting; they get no trigger); validation (never trained on, only measured).",
    )
    resolutions: tuple[int, ...] = Field(
        (512, 768, 1024),
        min_length=1,
        description="Edge lengths in pixels; each image is cropped to a bucket of about that area in its own aspect. "
        "Images are never enlarged.",
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often this set's images are drawn: 2 means twice as often as those of a set with weight 1.",
    )
    loss_weight: float = Field(
        1.0, ge=0, le=1000, description="The loss of this set's images counts this many times; 1 is normal."
    )
    adapter_strength: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="Strength of the LoRA while it trains on this set. Not how often it is drawn: that is `weight`.",
    )
    kohya_folders: bool = Field(
        False,
        description="Sub-folders named `10_name` repeat their images 10 times an epoch, as in kohya's scripts; `name` "
        "is the caption of images that have none.",
    )
    regularization_target: Literal["images", "base"] = Field(
        "images",
        description="What a regularization set teaches: its images, or what the base itself predicts for them "
        "(prior preservation, which keeps the base as it is even with mediocre pictures).",
    )

    caption_extension: str = Field("txt", pattern=r"^\.?\w{1,16}$", description="Extension of the caption files.")
    caption_column: str = Field(
        "text", min_length=1, max_length=64, description="Column of `metadata.jsonl` or `metadata.csv` with captions."
    )
    caption_per_line: bool = Field(
        False, description="Each line of a caption file is a caption of its own; every draw takes one of them."
    )
    default_caption: str | None = Field(
        None, description="Caption of images that have none. Empty: a missing caption is an error."
    )
    trigger: str | None = Field(
        None,
        description="Word that calls what is learned. It replaces `[trigger]` in captions, or is added (see below).",
    )
    trigger_placement: Literal["start", "end", "only_placeholder"] = Field(
        "start", description="Where the trigger goes in captions that hold neither it nor `[trigger]`."
    )
    caption_dropout: float = Field(
        0.0, ge=0, le=1, description="Share of draws whose caption is dropped (see dropped_caption)."
    )
    dropped_caption: Literal["trigger", "blank"] = Field(
        "trigger", description="What is left of a dropped caption: the trigger alone, or nothing."
    )
    shuffle_tags: bool = Field(False, description="Shuffle the comma-separated parts of captions.")
    keep_tags: int = Field(0, ge=0, description="How many leading parts stay in place when tags are shuffled.")

    flip_x: bool = Field(False, description="Mirror each image left to right half of the time.")
    flip_y: bool = Field(False, description="Turn each image upside down half of the time.")
    crop: Literal["center", "random"] = Field(
        "center", description="Which part of an image fills its bucket: the centre, or one of several random parts."
    )
    background: str = Field("white", description="Colour behind transparent images: a name or `#rrggbb`.")
    mask_folder: str | None = Field(
        None,
        description="Folder of masks, matched by file name; white is trained on, black is not. Empty: no masks.",
    )
    alpha_mask: bool = Field(False, description="Use the images' own transparency as mask: opaque is trained on.")
    invert_mask: bool = Field(False, description="Train on what the mask leaves out.")
    mask_minimum: float = Field(
        0.1, ge=0, le=1, description="Weight of what is masked out; a little keeps the picture whole."
    )
    control_folders: tuple[str, ...] = Field(
        (),
        max_length=MAX_CONTROLS,
        description="Folders of control images for edit models, matched by file name; cropped and flipped with the "
        "target.",
    )
    frames: tuple[int, ...] = Field(
        (33,),
        min_length=1,
        description="How many frames of each clip video models train on; several give each clip in several lengths. "
        "What the model cannot make is rounded down (to 4n + 1 or 8n + 1), and shorter clips stay as long as they are.",
    )
    fps: float | None = Field(
        None,
        gt=0,
        le=240,
        description="Frames per second that clips are resampled to, by their time stamps. Empty: those of the model.",
    )
    clip_part: Literal["start", "middle", "uniform", "random"] = Field(
        "start",
        description="Which part of a clip that is longer is trained on: its start, its middle, as many windows as fit "
        "side by side, spread evenly (uniform), or one of several random parts in each draw.",
    )

    first_frame: bool = Field(
        False,
        description="Clips go on from their first frame, as with image-to-video: video models that can be given one "
        "learn the rest of the clip. Models that always need one get it anyway, and stills have nothing to go on with.",
    )

    @field_validator("folder")
    @classmethod
    def _is_named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty, which would be the folder that the program happens to work in: name one")
        return value

    @field_validator("control_folders")
    @classmethod
    def _are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not folder.strip() for folder in value):
            raise ValueError("one of them is empty: name it, or leave it out")
        return value

    @field_validator("resolutions", "frames", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("resolutions")
    @classmethod
    def _sensible(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 16 <= resolution <= 8192 for resolution in value):
            raise ValueError("resolutions lie between 16 and 8192 pixels")
        return tuple(sorted(set(value)))

    @field_validator("frames")
    @classmethod
    def _are_lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= frames <= 4096 for frames in value):
            raise ValueError("clips have between 1 and 4096 frames")
        return tuple(sorted(set(value)))

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, value: str) -> str:
        from PIL import ImageColor

        if len(ImageColor.getrgb(value)) != 3:
            raise ValueError("the colour behind transparent images cannot be transparent itself")
        return value

    @field_validator("trigger", "default_caption", "mask_folder")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return empty_is_none(value)

    @model_validator(mode="after")
    def _parts_fit(self) -> DatasetConfig:
        if self.shuffle_tags and self.trigger and "," in self.trigger:
            raise ValueError("a trigger with a comma would be torn apart by shuffle_tags: use one without")
        if self.mask_folder and self.alpha_mask:
            raise ValueError("masks come from mask_folder or from the images' transparency (alpha_mask), not from both")
        if self.trigger and self.role == "regularization":
            raise ValueError("a regularization set shows the class without the trigger: leave its trigger empty")
        return self

    @property
    def masked(self) -> bool:
        """Whether images have masks."""
        return self.mask_folder is not None or self.alpha_mask


class CacheConfig(Section):
    """Encoded images and captions on disk, shared by all runs of a folder."""

    limit_gb: float = Field(
        100.0,
        gt=0,
        le=1_000_000,
        description="Largest size of the cache in GB. When a run starts, what was not used for longest is deleted "
        "beyond it, never what the run itself or another of the last day needs.",
    )
