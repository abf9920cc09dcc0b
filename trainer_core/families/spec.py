"""A family as data: its parts, streams, experts, what is adapted, and how LoRA files name it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

from ..config import AdapterConfig
from ..errors import ConfigError
from .conditioning import Stream


@dataclass(frozen=True)
class SamplingDefaults:
    """How a family's previews are drawn when the job does not say."""

    width: int
    height: int
    steps: int
    guidance: float
    frames: int = 1
    """Of models that make videos."""


@dataclass(frozen=True)
class LoraNames:
    """How a LoRA file names a family's layers, so that ComfyUI and other tools find them."""

    denoiser: str = "diffusion_model."
    """What precedes the denoiser's layers."""
    text_encoders: dict[str, str] = field(default_factory=dict)
    """Text encoder (as `Base.text_encoders` calls it) → what precedes its layers; empty where none can be adapted."""
    kohya: bool = False
    """Names are kohya's: underscores for dots, and `lora_down`, `lora_up` for `lora_A`, `lora_B`."""
    original: bool = True
    """Whether sd-scripts names the denoiser's layers as the original implementation does; else as diffusers does."""

    def key(self, path: str, root: str = "") -> str:
        """What precedes `.alpha` and the like for one layer.

        Args:
            path: of the denoiser's layer as `Base.lora_place` gives it; of a text encoder's, its own module path.
            root: the text encoder's name; empty for the denoiser.
        """
        if root and not path.startswith("text_model."):  # transformers has it in some of its CLIP classes only
            path = f"text_model.{path}"
        prefix = self.text_encoders[root] if root else self.denoiser
        return prefix + (path.replace(".", "_") if self.kohya else path)


Role = Literal["denoiser", "text_encoder", "vae", "adapter"]


@dataclass(frozen=True)
class Part:
    """One part of a model."""

    name: str
    """Its folder in diffusers layout, and its key in `model.files`."""
    role: Role
    kind: str
    """Its class, such as `transformers.CLIPTextModel`."""
    tokenizer: str = ""
    """The folder of a text encoder's tokenizer in diffusers layout."""
    tokenizer_kind: str = ""
    """clip, t5, …"""
    optional: bool = False
    """The model does without it."""

    def load_class(self) -> type:
        """Its class."""
        module, _, name = self.kind.partition(".")
        found: type = getattr(import_module(module), name)
        return found


@dataclass(frozen=True)
class Expert:
    """A denoiser for the times between two limits."""

    name: str = ""
    """Such as `high_noise`: it ends the LoRA file's name. Empty where there is only one."""
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class FamilySpec:
    """A family as data."""

    name: str
    title: str
    category: str
    """image, edit or video"""
    default_repo: str
    gated: bool
    vram_gb: str
    """Guidance in words, for the user."""
    streams: tuple[Stream, ...]
    """Of its latents, `main` first."""
    bucket_divisor: int
    """Widths and heights are multiples of this, in pixels."""
    default_timestep_type: str
    sampling: SamplingDefaults
    parts: tuple[Part, ...]
    """What it is made of."""
    targets: dict[str, tuple[str, ...]]
    """Adapter targets by name: regular expressions that match module paths of the denoiser whole."""
    conv_targets: tuple[str, ...] = ()
    """The same for the convolutions that `conv_rank` adapts; empty where there are none."""
    text_targets: tuple[str, ...] = ()
    """The same for the layers of a text encoder."""
    lora: LoraNames = LoraNames()
    experts: tuple[Expert, ...] = (Expert(),)
    """Denoisers for parts of the noise levels, the noisiest first; mostly one for all."""
    architecture: str = ""
    """The family in a LoRA's metadata, as modelspec writes it; the name if empty."""
    base_model_version: str = ""
    """The same as kohya's scripts write it, which is what some tools tell families apart by."""
    max_controls: int = 0
    """How many control images the denoiser takes beside the noisy one; 0 for models that only draw."""
    text_sees_controls: bool = False
    """Whether the text encoders look at the control images too, so that a prompt's embedding depends on them."""
    own_controls: bool = False
    """Whether control images come in a size of their own, of which `Base.encode_controls` makes what it needs; else in
    the target's."""
    frame_rate: float | None = None
    """Frames per second of what it makes; None: it makes pictures only. Pixels of others have a time axis always."""
    sample_rate: int | None = None
    """Samples per second of the sound that is encoded with the pixels; None: it has no sound."""
    learns_silence: bool = False
    """What a clip without sound, or a still, teaches the stream `audio`: silence, or nothing (it has no loss)."""
    first_frame: bool = False
    """Whether a clip's first frame is always given to the denoiser (`Base.encode_first_frame`)."""
    first_frame_chosen: bool = False
    """Whether it is given where the user says so: with `DatasetConfig.first_frame`, and with a preview's image."""
    first_frame_kept: bool = False
    """Whether the denoiser hands on a first frame that it is given as it is, so that its latents have no loss."""

    def of_role(self, role: Role) -> tuple[Part, ...]:
        """The parts of a role."""
        return tuple(part for part in self.parts if part.role == role)

    @property
    def denoiser_part(self) -> str:
        """The name of the first denoiser."""
        return self.of_role("denoiser")[0].name

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The names of all that embeddings of prompts depend on: text encoders and their tokenizers."""
        encoders = self.of_role("text_encoder")
        return (*(part.name for part in encoders), *self.tokenizers)

    @property
    def tokenizers(self) -> dict[str, str]:
        """Name of a tokenizer's folder → its kind (`tokenizer_kinds`)."""
        return {part.tokenizer: part.tokenizer_kind for part in self.parts if part.tokenizer}

    @property
    def takes_first_frame(self) -> bool:
        """Whether a video can go on from an image."""
        return self.first_frame or self.first_frame_chosen

    @property
    def max_given(self) -> int:
        """How many images a preview may be drawn with: its first frame, where there is one, and control images."""
        return self.max_controls + self.takes_first_frame

    @property
    def main(self) -> Stream:
        """The picture's stream, or the video's."""
        return self.streams[0]

    def expert_at(self, t: float) -> int:
        """The place in `experts` of the one for a time."""
        return next((place for place, one in enumerate(self.experts) if t >= one.low), len(self.experts) - 1)

    def check_adapter(self, adapter: AdapterConfig) -> None:
        """Whether the family has what an adapter's settings ask for.

        Raises:
            ConfigError: for convolutions or text encoders that it has not, or cannot adapt.
        """
        if adapter.conv_rank is not None and not self.conv_targets:
            raise ConfigError(f"adapter.conv_rank: {self.title} has no convolutions to adapt. Leave it empty")
        if adapter.text_encoders and not self.lora.text_encoders:
            raise ConfigError(f"adapter.text_encoders: LoRAs for {self.title} adapt the denoiser alone. Switch it off")
