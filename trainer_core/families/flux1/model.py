"""FLUX.1 (dev, schnell and finetunes); the embedded base is one, only smaller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ...config import ModelConfig
from ..conditioning import MAIN, Collated, Stream, Streams
from ..device import release_memory
from ..names import Place
from ..parts.kl import KlBase
from ..registry import register_family
from ..sources.layout import Layout
from ..sources.source import Source, reading
from ..spec import FamilySpec, Part, SamplingDefaults
from ..texts import check_width, token_ids
from .names import flux_place
from .single_file import FLUX1

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...objective.flow import FlowSchedule

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
    streams=(Stream(MAIN, channels=16, factor=8),),
    bucket_divisor=16,
    default_timestep_type="sigmoid",
    sampling=SamplingDefaults(width=1024, height=1024, steps=28, guidance=3.5),
    parts=(
        Part("transformer", "denoiser", "diffusers.FluxTransformer2DModel"),
        Part("text_encoder", "text_encoder", "transformers.CLIPTextModel", "tokenizer", "clip"),
        Part("text_encoder_2", "text_encoder", "transformers.T5EncoderModel", "tokenizer_2", "t5"),
        Part("vae", "vae", "diffusers.AutoencoderKL"),
    ),
    targets={
        "attention": _ATTENTION,
        "attention_mlp": (*_ATTENTION, *_FEED_FORWARD),
        "all": (*_ATTENTION, *_FEED_FORWARD, *_MODULATION),
    },
    architecture="flux-1-dev",
    base_model_version="flux1",
)

MAX_TOKENS = 512
"""T5 tokens that FLUX.1 reads; a tokenizer with a smaller limit sets its own (the embedded base: 16)."""
TRAINING_GUIDANCE = 1.0
"""Value of the guidance input while training a distilled model: no guidance, as the data has none."""


class Flux(KlBase):
    """One opened FLUX.1."""

    spec = SPEC
    layout: ClassVar[Layout | None] = FLUX1

    @classmethod
    def fits(cls, denoiser: Mapping[str, Any], name: str) -> bool:
        """Kontext's weights have FLUX.1's shapes: only their name tells."""
        return super().fits(denoiser, name) and ("kontext" in name.lower()) == bool(cls.spec.max_controls)

    def __init__(self, source: Source, config: ModelConfig) -> None:
        super().__init__(source, config)
        self._encoders: tuple[Any, ...] | None = None
        self._distilled = bool(source.config("transformer").get("guidance_embeds", False))

    @property
    def schedule(self) -> FlowSchedule:
        from ...objective.flow import FlowSchedule

        with reading(self.source.folder / "scheduler"):
            schedule = FlowSchedule.from_scheduler_config(self.source.config("scheduler"))
            if not 0 < schedule.shift_for(1024) < float("inf"):
                raise ValueError("its shift is no positive number")
            if schedule.terminal is not None and not 0 < schedule.terminal < 1:
                raise ValueError("its shift_terminal is not between 0 and 1")
        return schedule

    @property
    def guidance_distilled(self) -> bool:
        return self._distilled

    def tokens(self, shape: Sequence[int]) -> int:
        return (shape[-2] // 2) * (shape[-1] // 2)

    def lora_place(self, path: str) -> Place:
        return flux_place(path)

    def check_parts(self) -> None:
        super().check_parts()
        denoiser = self.source.config("transformer")
        for part, width, read in (
            ("text_encoder", "hidden_size", "pooled_projection_dim"),
            ("text_encoder_2", "d_model", "joint_attention_dim"),
        ):
            check_width(self.source, part, self.source.config(part).get(width), denoiser.get(read))

    # text

    def load_text_encoders(self) -> None:
        if not self._encoders:
            parts = self.spec.of_role("text_encoder")
            tokenizers = [self.source.tokenizer(part.tokenizer) for part in parts]
            self._encoders = (*tokenizers, *(self.load_part(part, self.text_encoder_dtype) for part in parts))

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """CLIP's pooled output (N, P) and T5's hidden states (N, L, D), padded and unmasked as in FLUX.1's pipeline."""
        assert self._encoders, "load_text_encoders first"
        clip_tokenizer, t5_tokenizer, clip, t5 = self._encoders
        pooled = clip(token_ids(clip_tokenizer, prompts, 77, self.device)).pooler_output
        text = t5(token_ids(t5_tokenizer, prompts, MAX_TOKENS, self.device)).last_hidden_state
        return {"text": text, "pooled": pooled}

    def free_text_encoders(self) -> None:
        self._encoders = None
        release_memory(self.device)

    def text_fingerprint(self) -> str:
        parts = self.source.fingerprint("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
        return f"{parts}:{self.text_precision}:{MAX_TOKENS}"

    # the denoiser

    def load_denoiser(self, expert: str = "") -> nn.Module:
        from .blocks import install

        denoiser = super().load_denoiser(expert)
        install(denoiser)
        return denoiser

    def predict(self, denoiser: nn.Module, noisy: Streams, t: Tensor, conditioning: Collated) -> Streams:
        import torch

        x, text = noisy[MAIN], conditioning.text
        images = (x, *conditioning.controls)
        given = TRAINING_GUIDANCE if conditioning.guidance is None else conditioning.guidance
        with _unrounded_time(denoiser, t):
            packed = denoiser(
                hidden_states=torch.cat([pack(image) for image in images], dim=1).to(self.dtype),
                encoder_hidden_states=text["text"].to(self.dtype),
                pooled_projections=text["pooled"].to(self.dtype),
                timestep=t,
                guidance=torch.ones_like(t) * given if self._distilled else None,
                img_ids=torch.cat([_ids_of(image, place) for place, image in enumerate(images)]),
                txt_ids=torch.zeros(text["text"].shape[1], 3, device=x.device),
                return_dict=False,
            )[0]
        return {MAIN: unpack(packed[:, : self.tokens(x.shape)], *x.shape[2:]).float()}


@contextmanager
def _unrounded_time(denoiser: nn.Module, t: Tensor) -> Iterator[None]:
    """Lets a FluxTransformer2DModel embed times (N,) as fp32, which it rounds to the precision of its weights first.

    bfloat16 has steps of 1/256 to 1/512 between 0.5 and 1, and so tells neither a sampler's steps nor training's times
    apart; ComfyUI embeds fp32. Guidance is left to the model: ComfyUI rounds it as diffusers does.
    """

    def unround(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (t.float() * 1000, *given[1:])  # the factor is FLUX.1's own: it was trained on times of 0 to 1000

    embedder = cast(Any, denoiser).time_text_embed
    hook = embedder.register_forward_pre_hook(unround)
    try:
        yield
    finally:
        hook.remove()


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
