"""A model's prediction as ComfyUI's sampler asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def predict(model: Any, streams: Sequence[Any], conditioning: list[list[Any]], *sigma: float) -> list[Any]:
    """What the diffusion model says of noisy latents, before it becomes a denoised picture: one tensor for each stream.

    Args:
        model: a BaseModel.
        streams: main, then sound, batch first; they stand for what is sampled and for the empty latent.
        conditioning: `[[cross_attn, options]]`.
        sigma: the noise level of each sample; that of the middle of sampling by default.
    """
    import comfy.sampler_helpers
    import comfy.samplers
    import comfy.utils
    import torch

    packed, shapes = comfy.utils.pack_latents(streams) if len(streams) > 1 else (streams[0], [streams[0].shape])
    model.latent_shapes = shapes if len(streams) > 1 else None
    conds = comfy.sampler_helpers.convert_cond(conditioning)
    more = {"latent_image": packed, "seed": 11} | ({"latent_shapes": shapes} if len(streams) > 1 else {})
    (encoded,) = comfy.samplers.encode_model_conds(model.extra_conds, conds, packed, packed.device, "positive", **more)
    given = {
        name: cond.process_cond(batch_size=packed.shape[0], device=packed.device, area=None).cond
        for name, cond in encoded["model_conds"].items()
    }
    if not sigma:
        sigma = (float(model.model_sampling.percent_to_sigma(0.5)),) * packed.shape[0]
    sigmas = torch.tensor(sigma, device=packed.device)
    options = {"cond_or_uncond": [0], "sigmas": sigmas, "sample_sigmas": torch.cat([sigmas, sigmas.new_zeros(1)])}
    said: list[Any] = []
    hook = model.diffusion_model.register_forward_hook(lambda module, args, out: said.append(out))
    try:
        model.apply_model(packed, sigmas, **given, transformer_options=options)
    finally:
        hook.remove()
    (out,) = said
    return list(out) if isinstance(out, list | tuple) else [out]
