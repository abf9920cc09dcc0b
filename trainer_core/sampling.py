"""Previews: the schedule's own sampler, from the noise that ComfyUI's samplers use for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ModelConfig, SampleConfig
from .errors import ConfigError

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from .families.base import Base, TextEmbedding


class Interrupted(Exception):
    """Raised inside long work when a stop was asked for."""


@dataclass(frozen=True)
class SamplerSettings:
    """How a picture is drawn; sizes in pixels."""

    width: int
    height: int
    steps: int
    guidance: float

    @classmethod
    def of(cls, sample: SampleConfig, base: Base) -> SamplerSettings:
        """A job's settings, with the family's own where it says nothing.

        Raises:
            ConfigError: if a size is no multiple of the family's divisor.
        """
        own, divisor = base.sampling, base.spec.bucket_divisor
        settings = cls(
            width=sample.width or own.width,
            height=sample.height or own.height,
            steps=sample.steps or own.steps,
            guidance=own.guidance if sample.guidance is None else sample.guidance,
        )
        for name in ("width", "height"):
            if getattr(settings, name) % divisor:
                raise ConfigError(f"sample.{name}: must be a multiple of {divisor} for {base.spec.title}")
        return settings

    def needs_blank(self, base: Base) -> bool:
        """Whether guidance takes a second pass, with the negative prompt."""
        return not base.guidance_distilled and self.guidance != 1.0


def draw(
    base: Base,
    denoiser: nn.Module,
    texts: Sequence[TextEmbedding],
    seeds: Sequence[int],
    settings: SamplerSettings,
    blank: TextEmbedding | None = None,
    should_stop: Callable[[], bool] | None = None,
    controls: Sequence[Tensor] = (),
) -> Tensor:
    """Draws one picture per text, as one batch; gives normalised latents (N, C, H, W), fp32, on the base's device.

    The noise of a seed is what `torch.manual_seed(seed); torch.randn(1, C, H, W)` gives on a CPU, as in ComfyUI.
    `blank`, the embedding of the negative prompt (mostly the empty one), is needed where `settings.needs_blank`.
    `controls` are normalised latents (1, C, h, w) of control images, the same for all pictures.

    Raises:
        Interrupted: when `should_stop` says so, between two steps.
    """
    import torch

    from .families.base import stack_text

    shape = (
        1,
        base.spec.latent_channels,
        settings.height // base.spec.vae_factor,
        settings.width // base.spec.vae_factor,
    )
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    x = torch.cat(noise).to(base.device)
    text = stack_text(list(texts), base.device)
    empty = stack_text([blank] * len(texts), base.device) if blank is not None else None
    seen = [control.to(base.device).expand(len(x), -1, -1, -1) for control in controls]
    schedule = base.schedule
    times = schedule.sampling_times(settings.steps, base.image_tokens(*shape[2:])).to(base.device)
    with torch.no_grad(), autocast(base):
        for here, there in pairwise(times):
            if should_stop and should_stop():
                raise Interrupted
            t = here.expand(len(x))
            prediction = base.predict(denoiser, x, t, text, guidance=settings.guidance, controls=seen)
            if empty is not None and settings.needs_blank(base):
                without = base.predict(denoiser, x, t, empty, guidance=settings.guidance, controls=seen)
                prediction = without + settings.guidance * (prediction - without)
            x = schedule.step(x, prediction, here, there)
    return x


def autocast(base: Base, dtype: torch.dtype | None = None) -> torch.autocast | nullcontext[None]:
    """Runs fp32 LoRA layers in a precision, the denoiser's if not told; nothing to do where that is fp32."""
    import torch

    dtype = dtype or base.dtype
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(base.device.type, dtype=dtype)


def preview(
    model: ModelConfig,
    prompts: Sequence[str],
    *,
    lora: Path | dict[str, Tensor] | None = None,
    strength: float = 1.0,
    sample: SampleConfig | None = None,
    controls: Sequence[Sequence[Image.Image]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Image.Image]:
    """Draws one picture per prompt with a base and, if given, a LoRA (a file, or tensors in ComfyUI's names).

    Args:
        controls: control images of each prompt; if not told, those that `sample` names.

    Raises:
        FoundryError: if base or LoRA cannot be loaded or do not fit each other, or control images do not fit the base.
        Interrupted: when `should_stop` says so.
    """
    import torch

    from .adapters.comfy_format import applied, applied_text, for_modules, parse
    from .adapters.key_names import split_text
    from .adapters.safetensors_file import read_tensors
    from .data.images import to_image
    from .families.registry import open_base
    from .preview_controls import check_count, encoded, of_settings

    sample = sample or SampleConfig()
    with torch.inference_mode(False):
        base = open_base(model)
        settings = SamplerSettings.of(sample, base)
        if controls is None:
            controls = [one.pictures() for one in of_settings(sample, len(prompts))]
        check_count(controls, base.spec, "control images")
        tensors = read_tensors(lora) if isinstance(lora, Path) else lora
        own, of_text = split_text(parse(tensors)) if tensors is not None else ({}, {})
        base.load_text_encoders()
        with applied_text(base, of_text, strength):
            texts = base.encode_prompts([*prompts, sample.negative_prompt])
        base.free_text_encoders()
        seen = encoded(base, controls, settings)
        denoiser = base.load_denoiser()
        changes = for_modules(own, denoiser, base)
        latents = []
        with applied(denoiser, changes, strength):
            for k in range(len(prompts)):
                if progress:
                    progress(k, len(prompts))
                seed = sample.seed + k * sample.walk_seed
                latents.append(draw(base, denoiser, [texts[k]], [seed], settings, texts[-1], should_stop, seen[k]))
        del denoiser
        base.load_vae()
        images = [to_image(base.decode_latents(x)[0]) for x in latents]
        base.free_vae()
    if progress:
        progress(len(prompts), len(prompts))
    return images
