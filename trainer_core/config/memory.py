"""How a run fits into the device's memory."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .section import Section


class MemoryConfig(Section):
    """How the run fits into memory; `memory: auto` in place of the section is the default."""

    plan: Literal["auto", "manual"] = Field(
        "auto",
        description="auto: the fastest way that fits (gradient checkpointing, layer offloading) is planned before "
        "training and corrected while it runs. manual: what the settings say.",
    )
    limit_gb: float | None = Field(
        None, gt=0, description="Memory of the device that the run may use, in GB. Empty: what is free."
    )
    checkpoint_every: int = Field(
        1, ge=1, le=1000, description="manual: gradient checkpointing of each n-th block only; more is faster."
    )
    keep_attention: bool = Field(
        False, description="manual: gradient checkpointing keeps what attention gives: faster, a little more memory."
    )
    offload_inputs: bool = Field(
        False, description="manual: what gradient checkpointing keeps waits in the computer's memory."
    )
    layer_offloading: float = Field(
        0.0,
        ge=0,
        le=1,
        description="manual: share of the denoiser's blocks that stay in the computer's memory and come to the GPU "
        "when they compute (low VRAM).",
    )
    compile: bool = Field(
        False, description="Compile each block (torch.compile): the first step takes minutes, all others less time."
    )
    attention: Literal["auto", "default"] = Field(
        "auto", description="auto: the fastest of torch's attention kernels, measured at the start. default: torch's."
    )

    @model_validator(mode="before")
    @classmethod
    def _in_a_word(cls, data: Any) -> Any:
        return {"plan": data} if isinstance(data, str) else data
