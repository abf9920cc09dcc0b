"""Quantize Base: which base model is trained on, and how precisely it is held."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.config import ModelConfig, validated
from ..trainer_core.families.registry import family_names
from . import host, sockets
from .widgets import widget


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
                widget(ModelConfig, "source"),
                widget(ModelConfig, "dtype", display_name="transformer"),
                widget(ModelConfig, "text_encoder_dtype", display_name="text encoders"),
                widget(ModelConfig, "vae_dtype", display_name="VAE", advanced=True),
            ],
            outputs=[sockets.Base.Output("base", tooltip="The base, for Train LoRA and Preview Samples.")],
        )

    @classmethod
    def execute(cls, family: str, source: str, dtype: str, text_encoder_dtype: str, vae_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(
            validated(
                ModelConfig,
                {
                    "family": family,
                    "source": source.strip(),
                    "dtype": dtype,
                    "text_encoder_dtype": text_encoder_dtype,
                    "vae_dtype": vae_dtype,
                    "device": host.device(),
                },
            )
        )
