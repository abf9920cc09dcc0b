"""Previews by ComfyUI's own samplers, from a model that is being trained: what they show is what its graphs will draw."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...trainer_core.errors import ConfigError, Interrupted
from .conditioning import Options, to_comfy

if TYPE_CHECKING:
    from .loading import TrainedModel

SAMPLER, FLOW_SCHEDULER, SCHEDULER = "euler", "simple", "normal"


def checked(name: str, known: Sequence[str], field: str) -> str:
    """A sampler's or scheduler's name.

    Raises:
        ConfigError: if ComfyUI has none of this name.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"{field}: ComfyUI has no {name!r}; {hint}")
    return name


def drawn(
    trained: TrainedModel,
    shape: Sequence[int],
    seed: int,
    positive: Options,
    negative: Options,
    *,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """One picture's or video's latents (1, …) as KSampler gives them, on the CPU.

    Args:
        shape: of the latents (C, …).

    Raises:
        Interrupted: when `should_stop` says so, between two steps.
    """

    def callback(_step: int, _x0: Any, _x: Any, _total: int) -> None:
        if should_stop and should_stop():
            raise Interrupted

    device = trained.patcher.load_device
    devices = [device] if device.type == "cuda" else []
    # samplers seed the process's generator; whatever else runs in ComfyUI must not notice
    with torch.no_grad(), torch.random.fork_rng(devices):
        latent = comfy.sample.fix_empty_latent_channels(trained.patcher, torch.zeros(1, *shape))
        noise = comfy.sample.prepare_noise(latent, seed)
        found: Tensor = comfy.sample.sample(
            trained.patcher,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            to_comfy(positive),
            to_comfy(negative),
            latent,
            callback=callback,
            disable_pbar=True,
            seed=seed,
        )
    return found.detach().to("cpu", torch.float32)
