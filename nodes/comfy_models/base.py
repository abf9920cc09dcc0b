"""A model that ComfyUI has loaded, as a base: whatever it samples can be trained, and nothing here asks which it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...trainer_core.config import LINKS, ModelConfig
from ...trainer_core.content import sha256_once
from ...trainer_core.errors import AdapterError, BaseModelError, first_line
from ...trainer_core.families.base import Base
from ...trainer_core.families.conditioning import AUDIO, MAIN, Conditioning, Streams, TextEmbedding
from ...trainer_core.families.names import Place
from ...trainer_core.families.sources.source import Source
from ...trainer_core.families.spec import FamilySpec
from ...trainer_core.memory.packing import Packing, described
from ...trainer_core.memory.saved import mutable_saved
from . import controls, files, sampling, traits, video
from . import sound as sounds
from .conditioning import Options, moved, to_embedding, to_options
from .loading import Linked, TrainedModel, recall, sampling_of, stays_as_it_is
from .media import decoded, encoded
from .prediction import computing, predicted
from .quantized import as_loaded
from .schedule import ComfySchedule
from .spec import SPEC, spec_of
from .training_adapter import TrainingAdapter

if TYPE_CHECKING:
    from ...trainer_core.sampling.sampler import SamplerSettings

_FOREIGN = "it belongs to another model. Link the one that the model is sampled with"


class ComfyBase(Base):
    """MODEL, CLIP and VAE of a graph."""

    spec = SPEC
    changes_inputs = True

    def __init__(self, linked: Linked, config: ModelConfig) -> None:
        self._linked, self.config = linked, config
        model = linked.models[0].model
        self._schedule = ComfySchedule(sampling_of(linked.models[0]))
        self.spec = spec_of(linked, self._schedule)
        self.source = Source(self.spec.title, Path(), {})
        self.device = linked.models[0].load_device
        self.dtype = model.get_dtype_inference()
        self.text_encoder_dtype = self.vae_dtype = torch.float32
        self._trained: dict[str, TrainedModel] = {}
        self._turbo: list[TrainingAdapter] = []

    @classmethod
    def spec_of(cls, model: ModelConfig) -> FamilySpec:
        return cls.open(model).spec

    @classmethod
    def open(cls, model: ModelConfig) -> Base:
        return cls(recall(model.source) if model.source.startswith(LINKS) else files.opened(model), model)

    @property
    def _model(self) -> Any:
        return self._linked.models[0].model

    # what the model is

    @property
    def schedule(self) -> ComfySchedule:
        return self._schedule

    @property
    def guidance_distilled(self) -> bool:
        return traits.guidance_distilled(self._model)

    def denoiser_fingerprint(self) -> str:
        adapter = self.config.files.get(files.TRAINING_ADAPTER)
        return f"{self._linked.models_digest} {sha256_once(Path(adapter))}" if adapter else self._linked.models_digest

    def check_parts(self) -> None:
        if self.config.text_encoder_quantization != "none":
            raise BaseModelError(
                "model.text_encoder_quantization: the CLIP is used as ComfyUI has loaded it. Set it to none, and "
                "load a CLIP in fp8 or another format to save memory"
            )
        if self._linked.clip is None:
            raise BaseModelError("the base has no CLIP: link the one that the model is sampled with")
        if self._linked.vae is None:
            raise BaseModelError("the base has no VAE: link the one that the model is sampled with")
        for model in self._linked.models:
            if model.injections:
                raise BaseModelError(
                    "a node changes the MODEL's own layers while it is sampled, which cannot count in training: "
                    f"{', '.join(model.injections)}. Link the MODEL as it is before that node"
                )

    def settings(self) -> dict[str, Any]:
        sampling = {"prediction": self._schedule.prediction, "shift": self._schedule.fixed_shift}
        return {"model_sampling": sampling, "foundry.json": {"timestep_type": self.timestep_type}}

    def tokens(self, shape: Sequence[int]) -> int:
        return math.prod(shape[1:])

    def latent_shapes(self, width: int, height: int, frames: int = 1) -> dict[str, tuple[int, ...]]:
        main = self.spec.main
        time = ((frames - 1) // main.time_factor + 1,) if traits.has_time(self._model) else ()
        found: dict[str, tuple[int, ...]] = {MAIN: (main.channels, *time, height // main.factor, width // main.factor)}
        if self._linked.audio_vae is not None:
            found[AUDIO] = sounds.shape(self._linked.audio_vae, frames, self.spec.frame_rate or 1.0)
        return found

    def lora_place(self, path: str) -> Place:
        return Place(path)

    # text

    def load_text_encoders(self) -> None:
        """ComfyUI brings it to the device when it is used."""

    def free_text_encoders(self) -> None:
        """It gives the memory back when something else needs it; what it has pushed off the device may come back."""
        for trained in self._trained.values():
            trained.make_room_anew()

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:  # noqa: ARG002
        raise AdapterError("adapter.text_encoders: ComfyUI's text encoders cannot be adapted. Switch it off")

    def encode_prompts(self, prompts: Sequence[str], pictures: Sequence[Sequence[Tensor]] = ()) -> list[TextEmbedding]:
        seen = pictures or [()] * len(prompts)
        found: list[Any] = []
        with computing(), as_loaded(self._linked.clip.cond_stage_model):
            for k, (prompt, some) in enumerate(zip(prompts, seen, strict=True)):
                same = k and prompt == prompts[k - 1] and some is seen[k - 1]  # batches are filled up with their last
                found += found[-1:] if same else [controls.conditioning(self._linked.clip, self._model, prompt, some)]
        return [to_embedding(one, self.dtype) for one in found]

    def text_fingerprint(self) -> str:
        return f"{self._linked.clip_digest}:{self.dtype}"

    # pixels

    def load_vae(self) -> None:
        """See `load_text_encoders`."""

    def free_vae(self) -> None:
        self.free_text_encoders()

    def encode_pixels(self, pixels: Tensor, sound: Tensor | None = None) -> tuple[Streams, Streams]:
        with computing():
            found = [encoded(self._linked.vae, self._model, one) for one in pixels]
            given, read = len(found[0][0]), self.spec.main.channels
            if given != read:
                raise BaseModelError(f"the VAE gives {given} channels, and {self.spec.title} reads {read}: {_FOREIGN}")
            means, stds = ({MAIN: torch.stack(values)} for values in zip(*found, strict=True))
            if sound is not None:
                heard = [sounds.encoded(self._linked.audio_vae, one, pixels.shape[2]) for one in sound]
                means[AUDIO] = torch.stack(heard)
                stds[AUDIO] = torch.zeros_like(means[AUDIO])
        return means, stds

    def encode_first_frame(self, pixels: Tensor) -> Tensor:
        with computing():
            return torch.stack([video.first_frame(self._linked.vae, self._model, one) for one in pixels])

    def encode_controls(self, pictures: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        with computing():
            return controls.encoded(self._linked.vae, self._model, pictures, size)

    def decode_latents(self, latents: Streams) -> Tensor:
        with computing():
            found = torch.stack([decoded(self._linked.vae, self._model, one[None]) for one in latents[MAIN]])
        return found if traits.is_video(self._model) else found[:, :, 0]

    def pixel_fingerprint(self) -> str:
        return f"{self._linked.vae_digest}:{type(self._model.latent_format).__name__}"

    # the denoiser

    def load_denoiser(self, expert: str = "") -> nn.Module:
        """A copy that shares the MODEL's weights; the MODEL stays as it is and can be sampled meanwhile."""
        denoiser = self.load_denoiser_on_host(expert)
        with computing():
            self._trained[expert].load()
        return denoiser

    def load_denoiser_on_host(self, expert: str = "") -> nn.Module:
        place = [one.name for one in self.spec.experts].index(expert)
        with computing():
            trained = TrainedModel(self._linked.models[place])
            if file := self.config.files.get(files.TRAINING_ADAPTER):
                self._turbo.append(TrainingAdapter(Path(file), trained.model))
            if self.config.quantization != "none":
                mark = f"{self._linked.models_digest} {place}"
                trained.pack(
                    Packing(self.config.quantization, mark, self.packed_cache, self.config.low_rank), self.dtype
                )
            self.recover(trained.denoiser)
        self._trained[expert] = trained
        return trained.denoiser

    def precision_told(self) -> list[str]:
        if self.config.quantization == "none":
            return []
        packing = Packing(self.config.quantization, low_rank=self.config.low_rank)
        return [
            described(one.model.diffusion_model, packing, self.dtype, stays_as_it_is(one))
            for one in self._linked.models
        ]

    def outline(self, expert: str = "") -> nn.Module:
        found: nn.Module = self._linked.models[
            [one.name for one in self.spec.experts].index(expert)
        ].model.diffusion_model
        return found

    def imitated(self) -> ComfyBase:
        from .imitation import ImitatedBase

        return ImitatedBase.of(self)

    def _of(self, denoiser: nn.Module) -> TrainedModel:
        return next(one for one in self._trained.values() if one.denoiser is denoiser)

    def bring(self, denoiser: nn.Module, device: torch.device | str) -> None:
        trained = self._of(denoiser)
        if str(device) == str(self.device):
            trained.load()
        else:
            trained.unload()

    def close(self) -> None:
        for trained in self._trained.values():
            trained.unload()
        self._trained.clear()
        self._turbo.clear()

    @contextmanager
    def training_pass(self) -> Iterator[None]:
        with computing(training=True), mutable_saved():
            yield

    def collate(self, samples: Sequence[Conditioning], guidance: Tensor | float | None = None) -> list[Options]:
        """ComfyUI's conditioning of each sample."""
        return [self._options(one, guidance, number) for number, one in enumerate(samples)]

    def _options(self, sample: Conditioning, guidance: Tensor | float | None, number: int) -> Options:
        assert sample.text is not None
        options = to_options(sample.text)
        if self.guidance_distilled:
            value = 1.0 if guidance is None else guidance
            options["guidance"] = float(value[number] if isinstance(value, Tensor) else value)
        if sample.time_ids is not None:
            names = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
            options |= dict(zip(names, sample.time_ids, strict=True))
        if sample.frame_rate is not None and traits.reads(self._model, "frame_rate"):
            options["frame_rate"] = sample.frame_rate
        options |= controls.options(self._model, sample.controls) | video.options(self._model, sample.first_frame)
        return moved(options, self.device)

    def predict(self, denoiser: nn.Module, noisy: Streams, t: Tensor, conditioning: list[Options]) -> Streams:
        trained = self._of(denoiser)
        with computing(training=True), torch.autocast(self.device.type, enabled=False):
            trained.load(noisy[MAIN].shape)
            try:
                return predicted(trained, self._schedule, noisy, t, conditioning)
            except RuntimeError as error:
                if "cannot be multiplied" not in str(error):
                    raise
                raise BaseModelError(
                    f"{self.spec.title} cannot read what the CLIP gives ({first_line(error)}): {_FOREIGN}"
                ) from None

    # previews

    def own_sampler(
        self,
        denoiser_at: Callable[[float], nn.Module],
        prompts: Sequence[Conditioning],
        seeds: Sequence[int],
        settings: SamplerSettings,
        negative: Conditioning | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Streams:
        """Draws as KSampler does."""
        sampler, scheduler = self.sampler_names(settings)
        shapes = self.latent_shapes(settings.width, settings.height, settings.frames)
        parts = [
            (stretch, partial(lambda t: self._of(denoiser_at(t)), stretch.t))
            for stretch in sampling.stretches(self._schedule, scheduler, settings.steps, self.spec.expert_at)
        ]
        found = []
        with computing(), ExitStack() as stack:
            for adapter in self._turbo:
                stack.enter_context(adapter.off())
            for prompt, seed in zip(prompts, seeds, strict=True):
                positive, other = self.collate([prompt, negative or prompt], settings.guidance)
                latents = sampling.drawn(
                    parts,
                    list(shapes.values()),
                    seed,
                    positive,
                    other,
                    steps=settings.steps,
                    cfg=1.0 if self.guidance_distilled else settings.guidance,
                    sampler=sampler,
                    scheduler=scheduler,
                    on_step=on_step,
                )
                latents[0] = video.finished(
                    self._model, self._model.latent_format.process_in(latents[0]), prompt.first_frame
                )
                found.append(latents)
        return {name: torch.cat(group) for name, group in zip(shapes, zip(*found, strict=True), strict=True)}

    def sampler_names(self, settings: SamplerSettings) -> tuple[str, str]:
        """The sampler and the scheduler of the job, or what suits the model.

        Raises:
            ConfigError: if ComfyUI has none of that name.
        """
        import comfy.samplers

        usual = sampling.FLOW_SCHEDULER if self._schedule.prediction == "flow" else sampling.SCHEDULER
        return (
            sampling.checked(settings.sampler or sampling.SAMPLER, comfy.samplers.SAMPLER_NAMES, "sample.sampler"),
            sampling.checked(settings.scheduler or usual, comfy.samplers.SCHEDULER_NAMES, "sample.scheduler"),
        )
