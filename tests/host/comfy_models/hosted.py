"""Tiny models of the zoo as bases that are trained, with a CLIP and a VAE that cost nothing."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from ..pack import module


class Clip:
    """Texts as long as their words are many, with values of their own."""

    layer_idx = None
    tokenizer = None

    def __init__(self) -> None:
        self.cond_stage_model = _weights()
        self.patcher = patcher_of(self.cond_stage_model)

    def tokenize(self, text: str, **_more: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list[list[Any]]:
        source = torch.Generator().manual_seed(zlib.crc32(tokens.encode()))
        text = torch.randn(1, 3 + len(tokens.split()), 64, generator=source)
        return [[text, {"pooled_output": torch.randn(1, 64, generator=source)}]]


class Vae:
    """Averages of cells of pixels as latents."""

    def __init__(self, channels: int = 16) -> None:
        self.first_stage_model = _weights()
        self.patcher = patcher_of(self.first_stage_model)
        self._channels = channels

    def encode(self, pixels: Any) -> Any:
        cells = nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return cells.repeat(1, self._channels, 1, 1)[:, : self._channels]

    def decode(self, latents: Any) -> Any:
        return nn.functional.interpolate(latents[:, :3], scale_factor=8).movedim(1, -1).clamp(0, 1)


def _weights() -> nn.Module:
    made = nn.Linear(2, 2, bias=False).requires_grad_(False)
    nn.init.eye_(made.weight)
    return nn.Sequential(made)


def patcher_of(model: Any) -> Any:
    """A ModelPatcher over a part on the CPU."""
    import comfy.model_patcher

    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def linked(model: Any, clip: Any = None, vae: Any = None, **settings: Any) -> Any:
    """The base that links make, as it goes over our own link."""
    clip, vae = clip or Clip(), vae or Vae(model.model.latent_format.latent_channels)
    base, _ = module("nodes.comfy_models.links").linked_model((model,), clip, vae, {"device": "cpu", **settings})
    return base


def opened(model: Any, **more: Any) -> Any:
    """The base of a MODEL, which keeps its links alive."""
    given = linked(model, **more)
    base = module("nodes.comfy_models.base").ComfyBase.open(given)
    base.kept = given
    return base


@cache
def registered() -> None:
    """Makes ComfyUI's models known to the trainer, as nodes/host.py does in ComfyUI."""
    module("trainer_core.families.registry").register_provider(module("nodes.comfy_models.provider").ComfyModels())


def trained(root: Any, job: dict[str, Any], while_running: Callable[[Any], None] | None = None) -> Any:
    """A whole run, which has ended: its `TrainingJob`.

    Args:
        job: as in a job.yaml; `model` may be what goes over our own link.
    """
    registered()
    config = module("trainer_core.config")
    run = module("trainer_core.api").new_run(root, config.validated(config.JobConfig, job))
    run.start()
    while run.alive:
        if while_running:
            while_running(run)
        time.sleep(0.02)
    return run


def lora_of(run: Any) -> dict[str, Any]:
    """The tensors of a run's last LoRA file."""
    from safetensors.torch import load_file

    return load_file(run.run.latest().lora)


def sample_of(conditioning: Sequence[Sequence[Any]], **more: Any) -> Any:
    """One sample's conditioning, as the data hands it over, of what a CLIP gives."""
    to_embedding = module("nodes.comfy_models.conditioning").to_embedding
    text = to_embedding(conditioning, torch.float32)
    return module("trainer_core.families.conditioning").Conditioning("", text, **more)


def sampled(patcher: Any, x: Any, sigma: Any, conditioning: Sequence[Sequence[Any]]) -> Any:
    """The denoised latents that ComfyUI's sampler computes of noisy ones in a step, with all that nodes did to a MODEL.

    Args:
        x: (1, C, …), in the sampler's scale.
        sigma: (1,)
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sampler_helpers
    import comfy.samplers

    conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    with torch.inference_mode():
        comfy.sampler_helpers.prepare_model_patcher(patcher, conds, options)
        model, conds, _ = comfy.sampler_helpers.prepare_sampling(patcher, x.shape, conds, options)
        patcher.pre_run()
        try:
            empty = torch.zeros_like(x)
            conds = comfy.samplers.process_conds(model, x, conds, x.device, empty, None, 0, latent_shapes=[x.shape])
            options["transformer_options"]["sample_sigmas"] = torch.cat([sigma, sigma.new_zeros(1)])
            (found,) = comfy.samplers.calc_cond_batch(model, [conds["positive"]], x, sigma, options)
        finally:
            patcher.cleanup()
    return found.clone()


@contextmanager
def training(base: Any) -> Any:
    """A base's denoiser while it is trained."""
    try:
        with base.training_pass():
            yield base.load_denoiser()
    finally:
        base.close()


def relative(found: Any, expected: Any) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def states(model: Any) -> dict[str, tuple[int, Any]]:
    """Every weight of a MODEL: which tensor object it is, and a copy of its values."""
    tensors = {**dict(model.model.named_parameters()), **dict(model.model.named_buffers())}
    return {name: (id(one), one.detach().clone()) for name, one in tensors.items()}
