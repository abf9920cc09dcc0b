"""Previews: the schedule's own sampler, from the noise that ComfyUI's samplers use for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..config import SampleConfig
from ..errors import ConfigError, Interrupted
from ..families.device import autocast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..families.base import Base, TextEmbedding


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

    from ..families.base import stack_text

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
    with torch.no_grad(), autocast(base.device, base.dtype):
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
