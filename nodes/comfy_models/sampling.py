"""Previews by ComfyUI's own samplers, from a model that is being trained: they show what its graphs will draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.sample
import comfy.samplers
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...trainer_core.errors import ConfigError, did_you_mean
from .conditioning import KNOWN, Options, to_comfy
from .video import begun

if TYPE_CHECKING:
    from .loading import TrainedModel
    from .schedule import ComfySchedule

SAMPLER, FLOW_SCHEDULER, SCHEDULER = "euler", "simple", "normal"


def checked(name: str, known: Sequence[str], field: str) -> str:
    """A sampler's or scheduler's name.

    Raises:
        ConfigError: if ComfyUI has none of this name.
    """
    if name not in known:
        raise ConfigError(f"{field}: ComfyUI has no {name!r}; {did_you_mean(name, known)}")
    return name


class Stretch(NamedTuple):
    """Some of a sampler's steps, which one expert makes."""

    start: int
    end: int
    t: float
    """The time of the first."""


def stretches(schedule: ComfySchedule, scheduler: str, steps: int, expert_at: Callable[[float], int]) -> list[Stretch]:
    """Which expert makes which steps, the noisiest first: the one whose times hold the step's σ."""
    times = schedule.times(comfy.samplers.calculate_sigmas(schedule.sampling, scheduler, steps))[:-1].tolist()
    place = [expert_at(t) for t in times]
    starts = [k for k in range(len(times)) if k == 0 or place[k] != place[k - 1]]
    return [Stretch(k, end, times[k]) for k, end in zip(starts, [*starts[1:], len(times)], strict=True)]


def drawn(
    parts: Sequence[tuple[Stretch, Callable[[], TrainedModel]]],
    shapes: Sequence[Sequence[int]],
    seed: int,
    positive: Options,
    negative: Options,
    *,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    on_step: Callable[[], None] | None = None,
) -> list[Tensor]:
    """One picture's or video's latents (1, …) of each stream as KSampler gives them, on the CPU.

    With several experts as KSamplerAdvanced does: each goes on from the noisy latents of the one before.

    Args:
        parts: the steps of each expert, and what brings it to the device.
        shapes: of each stream's latents (C, …).
        on_step: called after each step; ends the drawing by raising.
    """

    def callback(_step: int, _x0: Any, _x: Any, _total: int) -> None:
        if on_step:
            on_step()

    latent: Any = None
    noise: Any = None
    mask: Any = None
    for number, (stretch, model_of) in enumerate(parts):
        trained = model_of()
        device = trained.patcher.load_device
        # samplers seed the process's generator; whatever else runs in ComfyUI must not notice
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            if number == 0:
                latent, mask = _start(trained, [(1, *shape) for shape in shapes], positive.get(KNOWN))
                noise = comfy.sample.prepare_noise(latent, seed)
            else:
                noise = comfy.sample.prepare_empty_noise(latent)
            latent = comfy.sample.sample(
                trained.patcher,
                noise,
                steps,
                cfg,
                sampler,
                scheduler,
                to_comfy(positive),
                to_comfy(negative),
                latent,
                disable_noise=number > 0,
                start_step=stretch.start,
                last_step=stretch.end,
                force_full_denoise=number == len(parts) - 1,
                noise_mask=mask,
                callback=callback,
                disable_pbar=True,
                seed=seed,
            )
    return [one.detach().to("cpu", torch.float32) for one in (latent.unbind() if latent.is_nested else [latent])]


def _start(trained: TrainedModel, shapes: Sequence[Sequence[int]], first: Tensor | None) -> tuple[Any, Any]:
    """The empty latents, or those that begin with a first frame and the mask of what is to be made."""
    if first is None:
        latents, masks = [torch.zeros(tuple(shape)) for shape in shapes], None
    else:
        latents, masks = begun(first.cpu(), shapes)
        latents[0] = trained.model.latent_format.process_out(latents[0])
    if len(shapes) > 1:
        return NestedTensor(latents), masks and NestedTensor(masks)
    return comfy.sample.fix_empty_latent_channels(trained.patcher, latents[0]), masks and masks[0]
