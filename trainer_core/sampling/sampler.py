"""Previews: the schedule's own sampler, from the noise that ComfyUI's samplers use for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..config import SampleConfig
from ..errors import ConfigError
from ..families.conditioning import MAIN, each
from ..families.device import autocast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..families.base import Base
    from ..families.conditioning import Conditioning, Streams, TextEmbedding


@dataclass(frozen=True)
class SamplerSettings:
    """How a picture or a video is drawn; sizes in pixels."""

    width: int
    height: int
    steps: int
    guidance: float
    frames: int = 1
    sampler: str | None = None
    scheduler: str | None = None

    @classmethod
    def of(cls, sample: SampleConfig, base: Base) -> SamplerSettings:
        """A job's settings, with the family's own where it says nothing.

        Raises:
            ConfigError: if a size is no multiple of the family's divisor, or it cannot make so many frames.
        """
        own, divisor = base.sampling, base.spec.bucket_divisor
        settings = cls(
            width=sample.width or own.width,
            height=sample.height or own.height,
            steps=sample.steps or own.steps,
            guidance=own.guidance if sample.guidance is None else sample.guidance,
            frames=1 if base.spec.frame_rate is None else sample.frames or own.frames,
            sampler=sample.sampler,
            scheduler=sample.scheduler,
        )
        for name in ("width", "height"):
            if getattr(settings, name) % divisor:
                raise ConfigError(f"sample.{name}: must be a multiple of {divisor} for {base.spec.title}")
        if (settings.frames - 1) % (step := base.spec.main.time_factor):
            raise ConfigError(f"sample.frames: must be a multiple of {step}, and 1 more, for {base.spec.title}")
        return settings

    def needs_negative(self, base: Base) -> bool:
        """Whether guidance takes a second pass, with the negative prompt."""
        return not base.guidance_distilled and self.guidance != 1.0


def embedded(
    base: Base, prompts: Sequence[str], negative: str, pixels: Sequence[Sequence[Tensor]]
) -> list[tuple[TextEmbedding, TextEmbedding]]:
    """The embeddings of each prompt and of the negative one beside it; `load_text_encoders` first.

    Args:
        pixels: control images (3, H, W) of each prompt; all embeddings depend on them where `spec.text_sees_controls`.
    """
    if not base.spec.text_sees_controls:
        *own, without = base.encode_prompts([*prompts, negative])
        return [(one, without) for one in own]
    pairs = [base.encode_prompts([prompt, negative], [seen] * 2) for prompt, seen in zip(prompts, pixels, strict=True)]
    return [(own, without) for own, without in pairs]


def draw(
    base: Base,
    denoiser_at: Callable[[float], nn.Module],
    prompts: Sequence[Conditioning],
    seeds: Sequence[int],
    settings: SamplerSettings,
    negative: Conditioning | None = None,
    on_step: Callable[[], None] | None = None,
) -> Streams:
    """Draws one picture per prompt, as one batch; gives normalised latents, main (N, C, H, W), fp32, on the device.

    The noise of a seed is what `torch.manual_seed(seed); torch.randn(1, C, H, W)` gives on a CPU, as in ComfyUI.

    Args:
        denoiser_at: the denoiser for a time.
        negative: what guidance keeps away from, of all pictures; needed where `settings.needs_negative`.
        on_step: called before each step; ends the drawing by raising.
    """
    if base.own_sampler is not None:
        return base.own_sampler(denoiser_at, prompts, seeds, settings, negative, on_step)
    import torch

    moves = [] if base.spec.frame_rate is None else [settings.frames]
    shapes = base.latent_shapes(settings.width, settings.height, *moves)
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = {
        name: torch.cat([torch.randn((1, *shape), generator=source) for source in sources]).to(base.device)
        for name, shape in shapes.items()
    }
    schedule = base.schedule
    times = schedule.sampling_times(settings.steps, base.tokens(shapes[MAIN]))
    guided = negative is not None and settings.needs_negative(base)
    with torch.no_grad(), autocast(base.device, base.text_encoder_dtype):
        shown = base.collate(prompts, settings.guidance)
        without = base.collate([negative] * len(prompts), settings.guidance) if negative and guided else None
    with torch.no_grad(), autocast(base.device, base.dtype):
        for here, there in pairwise(times):
            if on_step:
                on_step()
            denoiser, now, then = denoiser_at(here.item()), here.to(base.device), there.to(base.device)
            t = now.expand(len(prompts))
            prediction = base.predict(denoiser, x, t, shown)
            if without is not None:
                plain = base.predict(denoiser, x, t, without)
                prediction = each(lambda own, other: other + settings.guidance * (own - other), prediction, plain)
            x = each(lambda own, towards: schedule.step(own, towards, now, then), x, prediction)  # noqa: B023
    return x
