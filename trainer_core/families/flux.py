"""FLUX.1 (dev, schnell and finetunes) from a folder in diffusers layout; the embedded base is one, only smaller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError, BaseModelError
from .base import Base, ComfyModule, FamilySpec, SamplingDefaults, TextEmbedding
from .device import release_memory
from .registry import register_family
from .sources import load_tokenizer, load_weights, reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..objective.flow import FlowSchedule

_ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
    r"single_transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v)",
)
_FEED_FORWARD = (
    r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)",
    r"single_transformer_blocks\.\d+\.(proj_mlp|proj_out)",
)
_MODULATION = (
    r"transformer_blocks\.\d+\.(norm1|norm1_context)\.linear",
    r"single_transformer_blocks\.\d+\.norm\.linear",
)

SPEC = FamilySpec(
    name="flux1",
    title="FLUX.1",
    category="image",
    default_repo="black-forest-labs/FLUX.1-dev",
    gated=True,
    vram_gb="24 GB at least, 48 GB to be comfortable",
    latent_channels=16,
    vae_factor=8,
    bucket_divisor=16,
    default_timestep_type="sigmoid",
    sampling=SamplingDefaults(width=1024, height=1024, steps=28, guidance=3.5),
    targets={
        "attention": _ATTENTION,
        "attention_mlp": (*_ATTENTION, *_FEED_FORWARD),
        "all": (*_ATTENTION, *_FEED_FORWARD, *_MODULATION),
    },
)

MAX_TOKENS = 512
"""T5 tokens that FLUX.1 reads; a tokenizer with a smaller limit sets its own (the embedded base: 16)."""
TRAINING_GUIDANCE = 1.0
"""Value of the guidance input while training a distilled model: no guidance, as the data has none."""

# diffusers' names → ComfyUI's (the original implementation's), for double blocks, single blocks and the rest.
# The fused layers' order is q, k, v and, in single blocks, then the MLP's input, which is four times as wide.
_DOUBLE = {
    "attn.to_q": ComfyModule("img_attn.qkv", 0, 1, 3),
    "attn.to_k": ComfyModule("img_attn.qkv", 1, 2, 3),
    "attn.to_v": ComfyModule("img_attn.qkv", 2, 3, 3),
    "attn.add_q_proj": ComfyModule("txt_attn.qkv", 0, 1, 3),
    "attn.add_k_proj": ComfyModule("txt_attn.qkv", 1, 2, 3),
    "attn.add_v_proj": ComfyModule("txt_attn.qkv", 2, 3, 3),
    "attn.to_out.0": ComfyModule("img_attn.proj"),
    "attn.to_add_out": ComfyModule("txt_attn.proj"),
    "ff.net.0.proj": ComfyModule("img_mlp.0"),
    "ff.net.2": ComfyModule("img_mlp.2"),
    "ff_context.net.0.proj": ComfyModule("txt_mlp.0"),
    "ff_context.net.2": ComfyModule("txt_mlp.2"),
    "norm1.linear": ComfyModule("img_mod.lin"),
    "norm1_context.linear": ComfyModule("txt_mod.lin"),
}
_SINGLE = {
    "attn.to_q": ComfyModule("linear1", 0, 1, 7),
    "attn.to_k": ComfyModule("linear1", 1, 2, 7),
    "attn.to_v": ComfyModule("linear1", 2, 3, 7),
    "proj_mlp": ComfyModule("linear1", 3, 7, 7),
    "proj_out": ComfyModule("linear2"),
    "norm.linear": ComfyModule("modulation.lin"),
}
_REST = {
    "x_embedder": ComfyModule("img_in"),
    "context_embedder": ComfyModule("txt_in"),
    "time_text_embed.timestep_embedder.linear_1": ComfyModule("time_in.in_layer"),
    "time_text_embed.timestep_embedder.linear_2": ComfyModule("time_in.out_layer"),
    "time_text_embed.text_embedder.linear_1": ComfyModule("vector_in.in_layer"),
    "time_text_embed.text_embedder.linear_2": ComfyModule("vector_in.out_layer"),
    "time_text_embed.guidance_embedder.linear_1": ComfyModule("guidance_in.in_layer"),
    "time_text_embed.guidance_embedder.linear_2": ComfyModule("guidance_in.out_layer"),
    "norm_out.linear": ComfyModule("final_layer.adaLN_modulation.1", swap_halves=True),
    "proj_out": ComfyModule("final_layer.linear"),
}
_BLOCKS = (
    (re.compile(r"transformer_blocks\.(\d+)\.(.+)"), "double_blocks", _DOUBLE),
    (re.compile(r"single_transformer_blocks\.(\d+)\.(.+)"), "single_blocks", _SINGLE),
)


class Flux(Base):
    """One opened FLUX.1."""

    spec = SPEC

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._encoders: tuple[Any, ...] | None = None
        self._vae: Any = None
        config = self.source.config("vae")
        with reading(self.source.folder / "vae"):
            self._shift = _finite(config.get("shift_factor"), 0.0)
            self._scale = _finite(config.get("scaling_factor"), 1.0)
        self._distilled = bool(self.source.config("transformer").get("guidance_embeds", False))

    @property
    def schedule(self) -> FlowSchedule:
        from ..objective.flow import FlowSchedule

        with reading(self.source.folder / "scheduler"):
            schedule = FlowSchedule.from_scheduler_config(self.source.config("scheduler", "scheduler_config.json"))
            if not 0 < schedule.shift_for(1024) < float("inf"):
                raise ValueError("its shift is no positive number")
        return schedule

    @property
    def guidance_distilled(self) -> bool:
        return self._distilled

    @property
    def transformer_file(self) -> Path:
        files = self.source.weights("transformer")
        if len(files) > 1:
            raise BaseModelError(
                f"{files[0].parent}: the denoiser is split over {len(files)} files, which ComfyUI cannot load as one. "
                "Use its single-file version in ComfyUI's models/diffusion_models"
            )
        return files[0]

    def image_tokens(self, height: int, width: int) -> int:
        return (height // 2) * (width // 2)

    def comfy_module(self, path: str) -> ComfyModule:
        for pattern, blocks, names in _BLOCKS:
            match = pattern.fullmatch(path)
            if match and match[2] in names:
                found = names[match[2]]
                return ComfyModule(f"{blocks}.{match[1]}.{found.path}", found.start, found.stop, found.total)
        if path in _REST:
            return _REST[path]
        raise AdapterError(f"FLUX.1 has no layer {path!r}")

    # text

    def load_text_encoders(self) -> None:
        if self._encoders:
            return
        from transformers import CLIPTextModel, T5EncoderModel

        def encoder(kind: Any, name: str) -> Any:
            model = load_weights(kind, self.source.component(name), dtype=self.text_encoder_dtype)
            return model.to(self.device).eval().requires_grad_(False)

        self._encoders = (
            load_tokenizer(self.source.component("tokenizer")),
            load_tokenizer(self.source.component("tokenizer_2")),
            encoder(CLIPTextModel, "text_encoder"),
            encoder(T5EncoderModel, "text_encoder_2"),
        )

    def encode_prompts(self, prompts: list[str]) -> list[TextEmbedding]:
        """CLIP's pooled output (P,) and T5's hidden states (L, D), padded and unmasked as in FLUX.1's own pipeline."""
        import torch

        assert self._encoders, "load_text_encoders first"
        clip_tokenizer, t5_tokenizer, clip, t5 = self._encoders
        with torch.no_grad():
            pooled = clip(self._tokens(clip_tokenizer, prompts, 77)).pooler_output
            text = t5(self._tokens(t5_tokenizer, prompts, MAX_TOKENS)).last_hidden_state
        return [{"text": text[k].cpu(), "pooled": pooled[k].cpu()} for k in range(len(prompts))]

    def _tokens(self, tokenizer: Any, prompts: list[str], limit: int) -> torch.Tensor:
        length = min(limit, tokenizer.model_max_length)
        encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: torch.Tensor = encoded.input_ids.to(self.device)
        return ids

    def free_text_encoders(self) -> None:
        self._encoders = None
        release_memory(self.device)

    def text_fingerprint(self) -> str:
        parts = self.source.fingerprint("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
        return f"{parts}:{self.text_encoder_dtype}:{MAX_TOKENS}"

    # pixels

    def load_vae(self) -> None:
        if self._vae is None:
            from diffusers import AutoencoderKL

            vae = load_weights(AutoencoderKL, self.source.component("vae"), torch_dtype=self.vae_dtype)
            self._vae = vae.to(self.device).eval().requires_grad_(False)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        with torch.no_grad():
            posterior = self._vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        mean, spread = posterior.mean.float().cpu(), posterior.std.float().cpu()
        return (mean - self._shift) * self._scale, spread * self._scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        import torch

        raw = latents.to(self.device, torch.float32) / self._scale + self._shift
        with torch.no_grad():
            pixels: Tensor = self._vae.decode(raw.to(self.vae_dtype)).sample
        return pixels.float().clamp(-1, 1).cpu()

    def free_vae(self) -> None:
        self._vae = None
        release_memory(self.device)

    def pixel_fingerprint(self) -> str:
        return f"{self.source.fingerprint('vae')}:{self.vae_dtype}"

    # the denoiser

    def load_denoiser(self) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        folder = self.source.component("transformer")
        denoiser: nn.Module = load_weights(FluxTransformer2DModel, folder, torch_dtype=self.dtype)
        return denoiser.to(self.device).eval().requires_grad_(False)

    def predict(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        t: Tensor,
        text: dict[str, Tensor],
        guidance: float | Tensor | None = None,
        controls: Sequence[Tensor] = (),
    ) -> Tensor:
        import torch

        _, _, height, width = noisy.shape
        images = (noisy, *controls)
        given = torch.ones_like(t) * (TRAINING_GUIDANCE if guidance is None else guidance) if self._distilled else None
        packed = denoiser(
            hidden_states=torch.cat([pack(image) for image in images], dim=1).to(self.dtype),
            encoder_hidden_states=text["text"].to(self.dtype),
            pooled_projections=text["pooled"].to(self.dtype),
            timestep=t,
            guidance=given,
            img_ids=torch.cat([_ids_of(image, place) for place, image in enumerate(images)]),
            txt_ids=torch.zeros(text["text"].shape[1], 3, device=noisy.device),
            return_dict=False,
        )[0]
        return unpack(packed[:, : self.image_tokens(height, width)], height, width).float()


def _finite(value: Any, default: float) -> float:
    """A number of a configuration, or the default for none and for 0.

    Raises:
        TypeError, ValueError: if it is no finite number.
    """
    number = float(value or default)
    if not abs(number) < float("inf"):
        raise ValueError(f"{value!r} is no finite number")
    return number


def pack(latents: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H/2 · W/2 tokens, 4C): each token is a 2x2 patch, ordered channel, row, column."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for latents of a height and width."""
    n, _, c = packed.shape
    grid = packed.view(n, height // 2, width // 2, c // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, c // 4, height, width)


def position_ids(rows: int, columns: int, device: torch.device, place: int = 0) -> Tensor:
    """Rotary positions of an image's tokens (rows · columns, 3): place, row, column.

    The place is 0 for the image that is drawn and counts the control images from 1.
    """
    import torch

    ids = torch.full((rows, columns, 3), float(place), device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.view(-1, 3)


def _ids_of(latents: Tensor, place: int) -> Tensor:
    _, _, height, width = latents.shape
    return position_ids(height // 2, width // 2, latents.device, place)


register_family(Flux)
