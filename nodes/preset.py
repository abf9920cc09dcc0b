"""Preset: settings to start from, for what is learned and for the GPU's memory."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core import api
from ..trainer_core.config import AdapterConfig, ModelConfig, validated
from . import host, sockets
from .preset_view import told, training_options
from .text_fields import WHOLE_NUMBERS


class Preset(io.ComfyNode):
    """Gives out the values of a preset; where a link is left out, the node's own widget says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sizes = [f"{size} GB" for size in api.VRAM_GB]
        subject = "What the LoRA is to learn: a character (a person or a figure), a style, or an object."
        return io.Schema(
            node_id="FoundryPreset",
            display_name="Preset (Foundry)",
            category=sockets.CATEGORY,
            description=(
                "Settings to start from, for a character, a style or an object and for the memory of the GPU. Each "
                "output goes to the input of the same name; what is not linked stays as its own node says."
            ),
            search_aliases=["preset", "recipe", "template", "character", "style", "object", "vram"],
            inputs=[
                sockets.Base.Input("base", tooltip="From Quantize Base: the preset is made for its family."),
                io.Combo.Input("subject", options=list(api.SUBJECTS), default="character", tooltip=subject),
                io.Combo.Input("vram", options=sizes, default="12 GB", tooltip="Memory of the GPU."),
            ],
            outputs=[
                sockets.LoraConfig.Output("lora", tooltip="For Train LoRA, in place of Configure LoRA."),
                sockets.TrainingOptions.Output(
                    "training_options", tooltip="For Train LoRA, in place of Training Options."
                ),
                io.Int.Output("steps", tooltip="For Train LoRA."),
                io.Float.Output("learning_rate", tooltip="For Train LoRA."),
                io.Int.Output("batch_size", tooltip="For Train LoRA."),
                io.Int.Output("gradient_accumulation", tooltip="For Train LoRA."),
                io.String.Output("resolutions", tooltip="For Load Dataset."),
            ],
        )

    @classmethod
    def execute(cls, base: ModelConfig, subject: Any, vram: str) -> io.NodeOutput:
        spec, size = api.spec_of(base), float(vram.split()[0])
        changes = api.preset(subject, size, spec)
        parts = api.by_part(changes)
        train = parts["train"]
        return io.NodeOutput(
            validated(AdapterConfig, parts["adapter"]),
            training_options(train),
            train["steps"],
            train["learning_rate"],
            train["batch_size"],
            train["gradient_accumulation"],
            WHOLE_NUMBERS.show(parts["dataset"]["resolutions"]),
            ui=host.shown_text(told(changes, api.preset_warning(size, spec))),
        )
