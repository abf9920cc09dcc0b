"""Load Base for Sampling: the trained base as the MODEL, CLIP and VAE of ComfyUI's own nodes."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..trainer_core.api import open_base
from ..trainer_core.config import ModelConfig
from . import host, sockets
from .comfy_models.files import load_diffusion_model
from .comfy_models.links import LinkedModel
from .node import Node
from .stand_ins import Clip, Vae


class LoadBase(Node):
    """Opens a BASE for ComfyUI's sampler, text encoding and decoding."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryLoadBase",
            display_name="Load Base for Sampling (Foundry)",
            category=sockets.CATEGORY,
            description="Hands the base out as MODEL, CLIP and VAE, so that ComfyUI's own nodes sample it with a LoRA.",
            search_aliases=["load base", "sample base", "base to model"],
            inputs=[sockets.Base.Input("base", tooltip="From Base Model.")],
            outputs=[
                io.Model.Output("model", tooltip="The denoiser, with the noise schedule that it was made with."),
                io.Clip.Output("clip", tooltip="The text encoders, for CLIPTextEncode."),
                io.Vae.Output("vae", tooltip="The VAE, for VAEDecode and VAEEncode."),
            ],
        )

    @classmethod
    def execute(cls, base: ModelConfig) -> io.NodeOutput:
        if isinstance(base, LinkedModel):
            return io.NodeOutput(*base.objects)
        opened = open_base(base)
        if Path(base.source).is_file() and not base.files:
            return io.NodeOutput(*host.load_checkpoint(opened.denoiser_file))
        model = load_diffusion_model(opened.denoiser_file, opened.schedule.fixed_shift)
        return io.NodeOutput(model, Clip(opened), Vae(opened, model.get_model_object("latent_format")))
