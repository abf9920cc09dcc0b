"""Quantize Base: which base model is trained on, and how precisely it is held."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.config import ModelConfig, validated
from ..trainer_core.families.registry import family_names
from . import host, sockets
from .settings import QUANTIZE_BASE, values
from .widgets import widgets


class QuantizeBase(io.ComfyNode):
    """The base model. Nothing is loaded here: training and previews open it when they run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        families = family_names()
        family = ModelConfig.model_fields["family"]
        return io.Schema(
            node_id="FoundryQuantizeBase",
            display_name="Quantize Base (Foundry)",
            category=sockets.CATEGORY,
            description="Chooses the base model that the LoRA is trained for, and the precision that it is held in.",
            search_aliases=["base model", "load model", "quantization", "precision"],
            inputs=[
                io.Combo.Input("family", options=families, default=family.default, tooltip="Family of the base model."),
                *widgets(QUANTIZE_BASE),
            ],
            outputs=[sockets.Base.Output("base", tooltip="The base, for Train LoRA and Preview Samples.")],
        )

    @classmethod
    def execute(cls, family: str, source: str, **settings: Any) -> io.NodeOutput:
        fields = values(QUANTIZE_BASE, {"source": host.base_source(source), **settings})["model"]
        return io.NodeOutput(validated(ModelConfig, {"family": family, "device": host.device(), **fields}))
