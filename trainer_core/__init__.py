"""LoRA Foundry's trainer core: trains LoRAs of diffusion models. It needs no ComfyUI and imports none of it."""

__version__ = "0.1.0"
