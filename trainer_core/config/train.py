"""The training itself."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .section import Section

TimestepType = Literal["auto", "sigmoid", "linear", "weighted", "shift", "one_step"]
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy", "lion")
"""By short name; any other is a class of `torch.optim`."""
UNUSABLE = {"lbfgs": "it evaluates the loss several times a step", "sparseadam": "it needs sparse gradients"}
"""Classes of torch.optim that cannot train here, in lower case, each with the reason."""


class TrainConfig(Section):
    """The training itself."""

    steps: int = Field(2000, ge=1, le=10_000_000, description="Number of optimizer steps.")
    batch_size: int = Field(1, ge=1, le=4096, description="Images in one forward pass.")
    gradient_accumulation: int = Field(
        1, ge=1, le=4096, description="Passes whose gradients are averaged into one step; costs time, not memory."
    )
    learning_rate: float = Field(
        1e-4, gt=0, le=10, description="Learning rate of the optimizer. 1 for prodigy, which finds its own."
    )
    text_encoder_lr: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Learning rate of adapter.text_encoders. Empty: half of learning_rate.",
    )
    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = Field(
        "constant",
        description="How the learning rate changes after warm-up: stays, or falls until the last step (with restarts: "
        "lr_cycles times).",
    )
    lr_cycles: int = Field(1, ge=1, le=1000, description="Number of falls of cosine_with_restarts.")
    lr_power: float = Field(2.0, gt=0, le=10, description="Exponent of polynomial; 1 is linear.")
    lr_final_share: float = Field(
        0.0, ge=0, le=1, description="Share of the learning rate that is left at the end of a fall."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises from 0.")
    optimizer: str = Field(
        "adamw",
        description="adamw, adamw8bit (needs bitsandbytes; a quarter of the optimizer's memory), adafactor, prodigy "
        "(finds its own learning rate; set learning_rate to 1), lion (a third of AdamW's learning rate), or the name "
        "of any class of torch.optim, such as RAdam.",
    )
    optimizer_options: dict[str, bool | int | float | str | list[float]] = Field(
        {}, description="More arguments for the optimizer, by its own names."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay.")
    beta1: float | None = Field(
        None, ge=0, lt=1, description="Decay of the optimizer's first moment. Empty: the optimizer's own (AdamW: 0.9)."
    )
    beta2: float | None = Field(
        None, ge=0, lt=1, description="Decay of its second moment. Empty: the optimizer's own (AdamW: 0.999)."
    )
    epsilon: float | None = Field(
        None, gt=0, description="Floor of its denominator. Empty: the optimizer's own (AdamW: 1e-8)."
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients are scaled down to this norm; 0 switches clipping off."
    )

    timestep_type: TimestepType = Field(
        "auto",
        description="How noise levels are drawn: sigmoid (most in the middle), linear (all alike), weighted (all "
        "alike, those that teach most count more), shift (as the sampler visits them, more high noise), one_step "
        "(pure noise only), auto (what the base was made with).",
    )
    timestep_bias: Literal["balanced", "high_noise", "low_noise"] = Field(
        "balanced",
        description="Prefer high noise, where the layout is decided (characters, objects), or low noise, where "
        "texture is (styles).",
    )
    timestep_min: float = Field(0.0, ge=0, lt=1, description="Lowest noise level that is trained, 0 to 1.")
    timestep_max: float = Field(1.0, gt=0, le=1, description="Highest noise level that is trained, 0 to 1.")
    stage_boundaries: tuple[float, ...] = Field(
        (),
        max_length=7,
        description="Noise levels that divide training into stages, such as 0.875 for Wan 2.2's two experts. Each step "
        "trains one stage. Empty: one stage.",
    )
    stages: Literal["all", "high_noise", "low_noise"] = Field(
        "all", description="Which stages are trained: all in turn, only the noisiest, only the least noisy."
    )
    stage_switch_every: int = Field(1, ge=1, description="Optimizer steps before the next stage takes over.")

    noise_offset: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Adds one random value per channel to the noise, so that DDPM models learn very dark and bright "
        "pictures; 0.05 is usual. Of no use for flow matching.",
    )
    loss_type: Literal["mse", "mae", "huber", "smooth_l1"] = Field(
        "mse", description="How errors count: squared, absolute, or squared up to huber_delta and linear beyond."
    )
    huber_delta: float = Field(1.0, gt=0, le=100, description="Where huber and smooth_l1 become linear.")
    min_snr_gamma: float | None = Field(
        None, gt=0, le=1000, description="Min-SNR weighting of noise levels; 5 is usual. Empty: none."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep a moving average of the LoRA's weights with this decay, such as 0.99: smoother results, less "
        "luck with the last step. Empty: none.",
    )
    ema_warmup: bool = Field(True, description="Let the average follow faster at first: (1 + n) / (10 + n) at most.")

    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: far less memory, about a third more time."
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Everything random in the run follows from it.")
    deterministic: bool = Field(
        False,
        description="Use only algorithms that always give the same bits: then the same job and data on the same "
        "machine give the same LoRA file, byte for byte. Slower on a GPU.",
    )
    skip_limit: int = Field(
        10,
        ge=0,
        le=10_000,
        description="Batches in a row that may be skipped because their loss or gradient is not finite, before the run "
        "stops.",
    )
    log_every: int = Field(1, ge=1, description="Steps between lines in metrics.jsonl.")

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        name = value.removeprefix("torch.optim.")
        if name.lower() in OPTIMIZERS:
            return name.lower() if name == value else value
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise ValueError(f"{value!r} is no optimizer: {', '.join(OPTIMIZERS)}, or a class of torch.optim")
        if name.lower() in UNUSABLE:
            raise ValueError(f"{name} cannot train here: {UNUSABLE[name.lower()]}")
        return value

    @field_validator("stage_boundaries", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, float) else value

    @field_validator("stage_boundaries")
    @classmethod
    def _falling(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < boundary < 1 for boundary in value):
            raise ValueError("stage boundaries lie between 0 and 1")
        return tuple(sorted(set(value), reverse=True))

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.timestep_min >= self.timestep_max:
            raise ValueError("timestep_min must be below timestep_max")
        if any(not self.timestep_min < boundary < self.timestep_max for boundary in self.stage_boundaries):
            raise ValueError("stage_boundaries must lie between timestep_min and timestep_max")
        return self
