"""What a model predicts while it is trained: what ComfyUI's sampler would compute, before it becomes a picture."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from ...trainer_core.errors import Interrupted
from ...trainer_core.families.conditioning import Streams
from .conditioning import KNOWN, Options, joined, model_conds, same_shape
from .kernels import compilable, differentiable
from .traits import mixes_samples
from .video import known

if TYPE_CHECKING:
    from .loading import TrainedModel
    from .schedule import ComfySchedule


@contextmanager
def computing(training: bool = False) -> Iterator[None]:
    """A cancel ends our work as a request to stop does; while training ComfyUI chooses kernels that have a gradient.

    A cancel that is seen by an operation of ours must still be seen by the node that waits.
    """
    try:
        with compilable(), differentiable() if training else nullcontext():
            yield
    except comfy.model_management.InterruptProcessingException:
        comfy.model_management.interrupt_current_processing(True)
        raise Interrupted from None


def predicted(
    trained: TrainedModel, schedule: ComfySchedule, noisy: Streams, t: Tensor, given: Sequence[Options]
) -> Streams:
    """The raw prediction, fp32, in the shapes of the latents.

    Samples whose conditioning has another shape, and all of a model that mixes them, are computed one after the other,
    so that each gets what it gets alone.

    Args:
        noisy: latents with a batch dimension, as the model's own `noise_scaling` makes them.
        t: times (N,).
        given: each sample's conditioning.
    """
    names = list(noisy)
    count = len(given)
    shapes = [tuple(noisy[name].shape[1:]) for name in names]
    packed = comfy.utils.pack_latents([noisy[name] for name in names])[0] if len(names) > 1 else noisy[names[0]]
    model = trained.model
    model.latent_shapes = [(1, *shape) for shape in shapes]
    conds = []
    for k, options in enumerate(given):
        x = packed[k : k + 1]
        begins: dict[str, Any] = {}
        if KNOWN in options:
            x, begins = known(model, x, schedule.sigma(t[k : k + 1]), options[KNOWN], model.latent_shapes)
            packed = torch.cat([packed[:k], x, packed[k + 1 :]])
        conds.append(model_conds(model, options, x, latent_shapes=model.latent_shapes, **begins))
    found: list[Streams] = [{} for _ in range(count)]
    for group in [[k] for k in range(count)] if mixes_samples(model) else _groups(conds):
        raw = _applied(trained, schedule, packed[group], t[group], joined([conds[k] for k in group]))
        for name, value, shape in zip(names, raw, shapes, strict=True):
            for row, k in enumerate(group):
                found[k][name] = value[row].float().reshape(shape)
    return {name: torch.stack([one[name] for one in found]) for name in names}


def _groups(conds: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    groups: list[list[int]] = []
    for number, one in enumerate(conds):
        fitting = next((group for group in groups if same_shape(conds[group[0]], one)), None)
        if fitting is None:
            groups.append([number])
        else:
            fitting.append(number)
    return groups


def _applied(
    trained: TrainedModel, schedule: ComfySchedule, x: Tensor, t: Tensor, conds: dict[str, Any]
) -> list[Tensor]:
    """The streams that the denoiser itself gives inside of `apply_model`, with all that nodes put around it."""
    model, options, sigma = trained.model, trained.options(), schedule.sigma(t)
    caught: list[Any] = []
    hook = model.diffusion_model.register_forward_hook(lambda _module, _args, output: caught.append(output))
    transformer = {
        **options["transformer_options"],
        "cond_or_uncond": [0],
        "uuids": [uuid.UUID(int=0)],
        "sigmas": sigma,
    }
    transformer["sample_sigmas"] = torch.cat([sigma[:1], sigma.new_zeros(1)])
    given = {**conds, "transformer_options": transformer}
    wrapper = options.get("model_function_wrapper")
    try:
        if wrapper is None:
            denoised = model.apply_model(x, sigma, **given)
        else:
            denoised = wrapper(model.apply_model, {"input": x, "timestep": sigma, "c": given, "cond_or_uncond": [0]})
    finally:
        hook.remove()
    output = caught[-1]
    if wrapper is not None or get_all_wrappers(WrappersMP.APPLY_MODEL, transformer):
        raw = output if isinstance(output, Tensor) else comfy.utils.pack_latents(output)[0]
        if not torch.equal(denoised, model.model_sampling.calculate_denoised(sigma, raw.float(), x)):
            # they changed what it said: the prediction that would make the same of x
            output = comfy.utils.unpack_latents(schedule.prediction_of(denoised, x, t), model.latent_shapes)
    return [output] if isinstance(output, Tensor) else list(output)[: len(model.latent_shapes)]
