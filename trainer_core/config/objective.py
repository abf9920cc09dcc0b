"""What training is kept from doing, and how it is measured on pictures that it never saw."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from .section import Section, empty_is_none


class RegularizationConfig(Section):
    """What keeps the LoRA from changing more than it should, and what makes it learn harder."""

    output_preservation: bool = Field(
        False,
        description="Differential Output Preservation: with the class word in the trigger's place, the LoRA must not "
        "change what the base predicts. Keeps the concept in its trigger; needs a trigger; a step takes about 2.3 "
        "times as long.",
    )
    output_preservation_class: str | None = Field(
        None,
        description="The class word: what the trigger is an example of, such as `woman` or `shape`. Several, separated "
        "by commas, take turns.",
    )
    output_preservation_weight: float = Field(
        1.0, gt=0, le=1000, description="How much Differential Output Preservation counts beside the loss."
    )
    blank_preservation: bool = Field(
        False,
        description="Blank Prompt Preservation: without any prompt, the LoRA must not change what the base predicts. "
        "Keeps guidance working and the style from leaking; no trigger needed.",
    )
    blank_preservation_weight: float = Field(
        1.0, gt=0, le=1000, description="How much Blank Prompt Preservation counts beside the loss."
    )
    preservation_every: int = Field(
        1, ge=1, le=1000, description="Steps from one preservation pass to the next; more is faster and weaker."
    )
    differential_guidance: bool = Field(
        False,
        description="Differential Guidance: aims beyond the target by differential_guidance_scale, which multiplies "
        "the gradient of the loss against everything else (preservation, clipping).",
    )
    differential_guidance_scale: float = Field(
        3.0, gt=0, le=100, description="How far beyond the target: 1 is the target itself."
    )
    contrastive_guidance: bool = Field(
        False,
        description="For guidance-distilled models (FLUX.1-dev): the target is pushed away from what the model "
        "predicts without a prompt, as guidance does when sampling; the guidance input gets the same scale.",
    )
    contrastive_guidance_scale: float = Field(
        3.0, ge=0, le=100, description="Guidance scale that contrastive guidance trains for."
    )
    contrastive_guidance_schedule: Literal["constant", "sigma"] = Field(
        "constant", description="constant: the same at every noise level; sigma: falls to 1 as noise goes to 0."
    )
    contrastive_guidance_projection: bool = Field(
        False, description="Scale the promptless prediction to fit the target best (CFG-Zero*) before pushing away."
    )
    ratio: float = Field(
        0.5, gt=0, lt=1, description="Share of batches that come from regularization sets, if there are any."
    )

    @field_validator("output_preservation_class")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return empty_is_none(value)

    @model_validator(mode="after")
    def _class_is_given(self) -> RegularizationConfig:
        if self.output_preservation and not self.classes:
            raise ValueError(
                "output_preservation needs output_preservation_class, the word that the trigger is an example of, such "
                "as `woman`"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The class words."""
        parts = (self.output_preservation_class or "").split(",")
        return tuple(part.strip() for part in parts if part.strip())


class ValidationConfig(Section):
    """Loss on pictures that are not trained on, at fixed noise and noise levels, so that runs can be compared."""

    every: int = Field(0, ge=0, description="Steps between validations; 0 switches them off.")
    share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of each training set's images that is held out for validation. 0: only sets with the role "
        "validation.",
    )
    draws: int = Field(4, ge=1, le=64, description="Noise levels per image, spread evenly.")
