"""Stable Diffusion 1.x and 2.x: a UNet that predicts ε or v under a DDPM schedule and reads CLIP's last layer.

diffusers' module names are also those by which kohya's LoRA files, and so ComfyUI, know the layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...config import ModelConfig
from ...errors import AdapterError, BaseModelError
from ..conditioning import MAIN, Collated, Stream, Streams
from ..device import release_memory
from ..names import Place, Shapes
from ..parts.kl import KlBase
from ..registry import register_family
from ..sources.layout import Layout
from ..sources.source import Source, reading
from ..spec import FamilySpec, LoraNames, Part, SamplingDefaults
from ..texts import check_width, token_ids
from .layouts import SD1
from .unet import original_modules

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...objective.ddpm import DdpmSchedule

_STAGE = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)"
_TRANSFORMER = rf"{_STAGE}\.attentions\.\d+"
_BLOCK = rf"{_TRANSFORMER}\.transformer_blocks\.\d+"

_ATTENTION = (rf"{_BLOCK}\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)",)
# proj_in and proj_out are 1x1 convolutions in SD 1.5 and linear layers in SDXL, and do the same in both
_FEED_FORWARD = (rf"{_BLOCK}\.ff\.net\.(?:0\.proj|2)", rf"{_TRANSFORMER}\.(?:proj_in|proj_out)")
_MODULATION = (rf"{_STAGE}\.resnets\.\d+\.time_emb_proj",)

SPEC = FamilySpec(
    name="sd15",
    title="Stable Diffusion 1.5",
    category="image",
    default_repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
    gated=False,
    vram_gb="8 GB",
    streams=(Stream(MAIN, channels=4, factor=8),),
    bucket_divisor=64,
    default_timestep_type="linear",
    sampling=SamplingDefaults(width=512, height=512, steps=25, guidance=7.5),
    parts=(
        Part("unet", "denoiser", "diffusers.UNet2DConditionModel"),
        Part("text_encoder", "text_encoder", "transformers.CLIPTextModel", "tokenizer", "clip"),
        Part("vae", "vae", "diffusers.AutoencoderKL"),
    ),
    targets={
        "attention": _ATTENTION,
        "attention_mlp": (*_ATTENTION, *_FEED_FORWARD),
        "all": (*_ATTENTION, *_FEED_FORWARD, *_MODULATION),
    },
    conv_targets=(
        rf"{_STAGE}\.resnets\.\d+\.(?:conv1|conv2|conv_shortcut)",
        rf"{_STAGE}\.(?:downsamplers|upsamplers)\.0\.conv",
    ),
    text_targets=(
        r"(?:text_model\.)?encoder\.layers\.\d+\.(?:self_attn\.(?:q_proj|k_proj|v_proj|out_proj)|mlp\.(?:fc1|fc2))",
    ),
    lora=LoraNames("lora_unet_", {"text_encoder": "lora_te_"}, kohya=True, original=False),
    architecture="stable-diffusion-v1",
    base_model_version="sd_v1",
)

TOKENS = 77
"""Tokens that CLIP reads, start and end included."""

_LAYERS = re.compile("|".join((*SPEC.targets["all"], *SPEC.conv_targets)))


class StableDiffusion(KlBase):
    """One opened Stable Diffusion."""

    spec = SPEC
    layout: ClassVar[Layout | None] = SD1
    conditioned_on: ClassVar[str | None] = None
    """What the UNet reads beside time and text, in diffusers' word for it."""

    @classmethod
    def fits(cls, denoiser: Mapping[str, Any], name: str) -> bool:
        return super().fits(denoiser, name) and denoiser.get("addition_embed_type") == cls.conditioned_on

    def __init__(self, source: Source, config: ModelConfig) -> None:
        super().__init__(source, config)
        from ...objective.ddpm import DdpmSchedule

        with reading(source.folder / "scheduler"):
            self._schedule = DdpmSchedule.from_scheduler_config(source.config("scheduler"))
        self._encoders: dict[str, nn.Module] = {}
        self._tokenizers: dict[str, Any] = {}
        unet = source.config("unet")
        added = unet.get("addition_embed_type")
        if added != self.conditioned_on:
            raise BaseModelError(
                f"model.source: {source.name} is no {self.spec.title} model: its UNet reads {added or 'nothing'} "
                f"beside time and text instead of {self.conditioned_on or 'nothing'}. Choose another model.family"
            )
        channels = unet.get("in_channels", self.spec.main.channels)
        if channels != self.spec.main.channels:
            raise BaseModelError(
                f"{source.name}: its UNet reads {channels} channels, as models for inpainting and editing do; "
                f"{self.spec.title} reads {self.spec.main.channels}. Choose a model that draws whole pictures"
            )

    @property
    def schedule(self) -> DdpmSchedule:
        return self._schedule

    @property
    def guidance_distilled(self) -> bool:
        return False

    def tokens(self, shape: Sequence[int]) -> int:
        return shape[-2] * shape[-1]

    def lora_place(self, path: str) -> Place:
        if not _LAYERS.fullmatch(path):
            raise AdapterError(f"{self.spec.title} has no layer {path!r}")
        return Place(path)

    def original_modules(self, shapes: Shapes) -> dict[str, str]:
        return original_modules(shapes)

    def check_parts(self) -> None:
        super().check_parts()
        encoders = [part.name for part in self.spec.of_role("text_encoder")]
        widths = [self.source.config(part).get("hidden_size", 0) for part in encoders]
        expected = self.source.config("unet").get("cross_attention_dim")
        check_width(self.source, " and model.files.".join(encoders), sum(widths), expected)

    # text

    def load_text_encoders(self) -> None:
        if not self._encoders:
            parts = self.spec.of_role("text_encoder")
            self._tokenizers = {part.name: self._tokenizer(part) for part in parts}
            self._encoders = {part.name: self.load_part(part, self.text_encoder_dtype) for part in parts}

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """CLIP's last hidden states after its final norm (N, 77, D), padded and unmasked."""
        return {"text": self._encode("text_encoder", prompts).last_hidden_state}

    def text_encoders(self) -> dict[str, nn.Module]:
        return dict(self._encoders)

    def free_text_encoders(self) -> None:
        self._encoders, self._tokenizers = {}, {}
        release_memory(self.device)

    def text_fingerprint(self) -> str:
        return f"{self.source.fingerprint(*self.spec.text_parts)}:{self.text_precision}:{TOKENS}"

    def _tokenizer(self, part: Part) -> Any:
        return self.source.tokenizer(part.tokenizer)

    def _encode(self, part: str, prompts: Sequence[str], **options: bool) -> Any:
        """What a text encoder gives for prompts."""
        assert self._encoders, "load_text_encoders first"
        ids = token_ids(self._tokenizers[part], prompts, TOKENS, self.device)
        return self._encoders[part](ids, **options)

    # the denoiser

    def predict(self, denoiser: nn.Module, noisy: Streams, t: Tensor, conditioning: Collated) -> Streams:
        x = noisy[MAIN]
        prediction: Tensor = denoiser(
            x.to(self.dtype),
            self._schedule.step_index(t),
            encoder_hidden_states=conditioning.text["text"].to(self.dtype),
            added_cond_kwargs=self._added(x, conditioning),
            return_dict=False,
        )[0]
        return {MAIN: prediction.float()}

    def _added(self, x: Tensor, conditioning: Collated) -> dict[str, Tensor] | None:  # noqa: ARG002 - see SDXL
        """What the UNet reads beside noise, time and text."""
        return None


register_family(StableDiffusion)
