"""The family contract (design §4): a `FamilySpec` says as data what a family is, a `Base` is one opened model of it.

A `Base` loads its parts one at a time and on request, so that a run can encode, free, and only then load the denoiser.
Text and latents go through the trainer as the family made them; nobody outside asks which family it is.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..config import ModelConfig
from ..errors import BaseModelError
from .conditioning import MAIN, Collated, Conditioning, Streams, TextEmbedding
from .device import pick_device, pick_dtype, upload
from .loads import Loads
from .names import Place
from .sources.source import EMBEDDED, Source, open_source
from .spec import FamilySpec, SamplingDefaults
from .texts import stack_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..memory.settings import MemorySettings
    from ..objective.schedule import Schedule
    from .names import Shapes
    from .sources.layout import Layout

Sampler = Callable[..., Streams]


class Base(Loads, ABC):
    """One opened model. Loading is lazy; every `load_*` may be called again and gives the same object until freed."""

    spec: FamilySpec
    layout: ClassVar[Layout | None] = None
    """How the family's parts lie in single files; None if it reads folders only."""
    changes_inputs: ClassVar[bool] = False
    """Whether blocks of the denoiser may change what they are given in place."""

    def __init__(self, source: Source, config: ModelConfig) -> None:
        self.source, self.config = source, config
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.text_encoder_dtype = pick_dtype(config.text_encoder_dtype, self.device)
        self.vae_dtype = pick_dtype("float32" if config.vae_dtype == "auto" else config.vae_dtype, self.device)

    @classmethod
    def fits(cls, denoiser: Mapping[str, Any], name: str) -> bool:  # noqa: ARG003
        """Whether a model is of this family.

        Args:
            denoiser: its denoiser's configuration, as diffusers writes it.
            name: what it is called: the pipeline in its `model_index.json`, or the single file with its modelspec.
        """
        return denoiser.get("_class_name") == cls.spec.of_role("denoiser")[0].kind.rpartition(".")[2]

    @classmethod
    def spec_of(cls, model: ModelConfig) -> FamilySpec:  # noqa: ARG003
        """The spec of one model of the family; where models of a family differ in it, this opens the model."""
        return cls.spec

    @classmethod
    def open(cls, model: ModelConfig) -> Base:
        """Opens a model: finds its files, and loads nothing yet.

        Raises:
            ConfigError: for an unknown device.
            BaseModelError: if its files are not there.
        """
        source = open_source(model.source, cls.spec, cls.layout, model.files, model.tokenizers)
        part = cls.spec.denoiser_part
        if part not in source.parts and not (source.folder / part).is_dir():
            what = "the embedded base" if source.folder == EMBEDDED else f"{source.folder}"
            raise BaseModelError(
                f"model.source: {what} is no {cls.spec.title} model (it has no `{part}`). Name a checkpoint file, a "
                f"folder or a repository of that family, such as {cls.spec.default_repo}, or another model.family"
            )
        return cls(source, model)

    # what the model is, known before anything is loaded

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """The noise schedule, for training and for sampling."""

    @property
    def timestep_type(self) -> str:
        """What `auto` stands for."""
        return str(self.source.profile.get("timestep_type", self.spec.default_timestep_type))

    @property
    def sampling(self) -> SamplingDefaults:
        """How to draw when the job does not say."""
        given = self.source.profile.get("sampling", {})
        return SamplingDefaults(**{**vars(self.spec.sampling), **given})

    @property
    def denoiser_file(self) -> Path:
        """The denoiser's weights as one safetensors file that ComfyUI loads.

        Raises:
            BaseModelError: if they are spread over several files.
        """
        return self.source.file(self.spec.denoiser_part)

    def denoiser_fingerprint(self) -> str:
        """Changes whenever the denoiser's weights do."""
        return self.source.fingerprint(self.spec.denoiser_part)

    def check_parts(self) -> None:
        """Whether all parts and tokenizers are there and belong together; reads headers and configurations only.

        Raises:
            BaseModelError: for a part that is not there, or is of another model than the denoiser.
        """
        needed = [part.name for part in self.spec.parts if not part.optional]
        self.source.check(*needed, *self.spec.tokenizers)

    def settings(self) -> dict[str, Any]:
        """What updates take from the base beside weights: its scheduler's configuration, and the `timestep_type`."""
        return {
            "scheduler_config.json": self.source.config("scheduler"),
            "foundry.json": {"timestep_type": self.timestep_type},
        }

    def as_sampled(self) -> Base:
        """The same base with the fingerprints of runs before November 2026 (`Source.sampled`), to compare with them."""
        twin = copy.copy(self)
        twin.source = replace(self.source, sampled=True)
        return twin

    def encoders_fingerprint(self) -> str:
        """Changes whenever the weights of text encoders or VAE do, or a tokenizer, but not with their precision."""
        return " ".join(mark.partition(":")[0] for mark in (self.text_fingerprint(), self.pixel_fingerprint()))

    @abstractmethod
    def tokens(self, shape: Sequence[int]) -> int:
        """Number of tokens of a main stream (C, …, H, W); it is what shifts of the schedule depend on."""

    def latent_shapes(self, width: int, height: int, frames: int = 1) -> dict[str, tuple[int, ...]]:
        """Shapes of all streams of a picture, or of a video of so many frames, by its size in pixels.

        Families with sound say themselves how long its stream is.
        """
        moves = self.spec.frame_rate is not None
        return {
            one.name: (
                one.channels,
                *(((frames - 1) // one.time_factor + 1,) if moves else ()),
                height // one.factor,
                width // one.factor,
            )
            for one in self.spec.streams
        }

    @abstractmethod
    def lora_place(self, path: str) -> Place:
        """Where a module of the denoiser lives in ComfyUI's model, or what ComfyUI calls it in a LoRA.

        Raises:
            AdapterError: for a path that the family does not know.
        """

    def original_modules(self, shapes: Shapes) -> dict[str, str]:  # noqa: ARG002
        """Module path of the denoiser → its name in the model's original implementation, for LoRA files that use it.

        Args:
            shapes: of the denoiser's weights, by our names.
        """
        return {}

    # text

    @property
    def text_precision(self) -> str:
        """What the text encoders are held in, for `text_fingerprint`."""
        quantization = self.config.text_encoder_quantization
        return f"{self.text_encoder_dtype}{'' if quantization == 'none' else f' {quantization}'}"

    @abstractmethod
    def load_text_encoders(self) -> None:
        """Loads tokenizers and text encoders to the device."""

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """A batch of prompts as the model's own pipeline embeds them, on the device; `load_text_encoders` first.

        Keeps the graph where gradients are on, so that text encoders can be trained.
        """

    def encode_prompts(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Sequence[Tensor]] = (),  # noqa: ARG002
    ) -> list[TextEmbedding]:
        """The embedding of each prompt by itself, without graph and padding, on the CPU; `load_text_encoders` first.

        Args:
            pictures: where `spec.text_sees_controls`, each prompt's control images (3, H, W) in [-1, 1].
        """
        import torch

        with torch.no_grad():
            batch = self.embed(prompts)
        return [{name: values[k].cpu() for name, values in batch.items()} for k in range(len(prompts))]

    def text_encoders(self) -> dict[str, nn.Module]:
        """The loaded text encoders that a LoRA can adapt (those of `spec.lora.text_encoders`), by name."""
        return {}

    @abstractmethod
    def free_text_encoders(self) -> None:
        """Drops the text encoders."""

    @abstractmethod
    def text_fingerprint(self) -> str:
        """Changes whenever a prompt's embedding would: a digest of the files, and after a colon what else counts."""

    # pixels

    @abstractmethod
    def load_vae(self) -> None:
        """Loads the VAE to the device."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor, sound: Tensor | None = None) -> tuple[Streams, Streams]:
        """Pixels (N, 3, H, W) in [-1, 1] → mean and standard deviation of the normalised latents, on the CPU, fp32.

        Where `spec.frame_rate` is set, pixels are (N, 3, T, H, W), a picture's too (T = 1).

        Args:
            sound: (N, 2, samples) in [-1, 1], as long as the frames; given where `spec.sample_rate` is set.
        """

    def encode_first_frame(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, T, H, W) in [-1, 1] → normalised latents (N, C, T', h, w), the first frame known.

        Called after `encode_pixels` where a first frame is given (`spec.first_frame`); on the CPU, fp32. T' may be 1.
        """
        raise NotImplementedError(f"{self.spec.name} knows no first frames")

    def encode_controls(
        self,
        pictures: Sequence[Tensor],
        size: tuple[int, int],  # noqa: ARG002
    ) -> tuple[Tensor, ...]:
        """What the denoiser is given of one sample's control images, on the CPU, fp32: `Conditioning.controls`.

        Args:
            pictures: (3, H, W) in [-1, 1], each of a size of its own where `spec.own_controls`, else of the target's.
            size: the target's width and height in pixels.
        """
        import torch

        rate, samples = self.spec.frame_rate, self.spec.sample_rate
        if rate is None:
            return tuple(self.encode_pixels(one[None])[0][MAIN][0] for one in pictures)
        silence = [torch.zeros(1, 2, round(samples / rate))] if samples else []
        return tuple(self.encode_pixels(one[None, :, None], *silence)[0][MAIN][0] for one in pictures)

    @abstractmethod
    def decode_latents(self, latents: Streams) -> Tensor:
        """Normalised latents → pixels (N, 3, H, W) in [-1, 1], on the CPU, fp32; (N, 3, T, H, W) of video models."""

    @abstractmethod
    def free_vae(self) -> None:
        """Drops the VAE."""

    @abstractmethod
    def pixel_fingerprint(self) -> str:
        """Changes whenever a picture's latents would: a digest of the files, and after a colon what else counts."""

    # the denoiser

    def bring(self, denoiser: nn.Module, device: torch.device | str) -> None:
        """Moves the denoiser to a device: another expert needs the memory, or this one's turn has come."""
        denoiser.to(device)

    def close(self) -> None:
        """Gives back what a host keeps for the denoisers that were loaded; they are not used any more."""

    def recompute_blocks(self, denoiser: nn.Module, memory: MemorySettings) -> None:
        """Has the denoiser's blocks computed again in the backward pass instead of kept, as far as the settings say."""
        from ..memory.blocks import blocks_of
        from ..memory.offload import copies_for
        from ..memory.recompute import recompute_blocks

        recompute_blocks(
            denoiser,
            blocks_of(denoiser).values(),
            every=memory.every if memory.recompute else 0,
            keep_attention=memory.keep_attention,
            copies=copies_for(self.device) if memory.offload_inputs else None,
        )

    def training_pass(self) -> AbstractContextManager[None]:
        """What is around the forward and backward passes of each micro-batch."""
        return nullcontext()

    own_sampler: Sampler | None = None
    """Draws previews in place of `sampling.sampler.draw`, with the same arguments, where a model's host has its own."""

    def collate(self, samples: Sequence[Conditioning], guidance: Tensor | float | None = None) -> Any:
        """The conditioning of a batch, on the device, as `predict` takes it; the result is that of each sample alone.

        Prompts without an embedding are embedded here, with their graph: `load_text_encoders` first.

        Args:
            guidance: value for guidance-distilled models, one number or one for each sample (N,); None is what training
                uses.

        Raises:
            BaseModelError: for embeddings of different lengths, in families that know no way to batch them.
        """
        import torch

        texts = [one.text for one in samples if one.text is not None]
        time_ids = [one.time_ids for one in samples if one.time_ids is not None]
        return Collated(
            text=stack_text(texts, self.device) if texts else self.embed([one.prompt for one in samples]),
            controls=tuple(
                upload(torch.stack(group), self.device)
                for group in zip(*(one.controls for one in samples), strict=True)
            ),
            time_ids=upload(torch.tensor(time_ids, dtype=torch.float32), self.device) if time_ids else None,
            guidance=guidance,
        )

    @abstractmethod
    def predict(self, denoiser: nn.Module, noisy: Streams, t: Tensor, conditioning: Any) -> Streams:
        """The denoiser's prediction for each stream, in fp32 and in the layout of the latents.

        Args:
            noisy: normalised latents by stream, with a batch dimension: main is (N, C, H, W).
            t: times (N,) in [0, 1], 1 being noise.
            conditioning: of the batch, as `collate` gives it.
        """

    @property
    @abstractmethod
    def guidance_distilled(self) -> bool:
        """Whether the denoiser takes guidance as an input, instead of by a second pass."""
