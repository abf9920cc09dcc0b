"""What nodes do to a MODEL: one function for each way, and the MODEL with some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .zoo import MODELS

WEIGHT = "diffusion_model.double_blocks.0.img_attn.proj.weight"


def shifted(model: Any) -> None:
    """As ModelSamplingSD3."""
    import comfy.model_sampling as kinds

    found = type("ModelSamplingAdvanced", (kinds.ModelSamplingDiscreteFlow, kinds.CONST), {})(model.model.model_config)
    found.set_parameters(shift=7.0, multiplier=500.0)
    model.add_object_patch("model_sampling", found)


def merged_lora(model: Any) -> None:
    """As LoraLoader."""
    import comfy.sd

    source = torch.Generator().manual_seed(5)
    path = WEIGHT.removesuffix(".weight")
    tensors = {
        f"{path}.lora_A.weight": torch.randn(4, 128, generator=source),
        f"{path}.lora_B.weight": torch.randn(128, 4, generator=source),
        f"{path}.alpha": torch.tensor(4.0),
    }
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 0.7, 0)
    model.patches, model.patches_uuid = patched.patches, patched.patches_uuid
    assert model.patches


def louder_attention(model: Any) -> None:
    model.set_model_attn1_output_patch(lambda out, _options: out * 1.25)


def replaced_block(model: Any) -> None:
    def again(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        found = extra["original_block"](args)
        return {**found, "img": found["img"] * 0.8}

    model.set_model_patch_replace(again, "dit", "double_block", 0)


def around_model(model: Any) -> None:
    """A function around the model that asks it twice, and mixes what it says."""

    def mix(apply: Callable[..., Any], args: dict[str, Any]) -> Any:
        once = apply(args["input"], args["timestep"], **args["c"])
        return once - 0.3 * apply(args["input"] * 0.5, args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(mix)


def around_apply(model: Any) -> None:
    import comfy.patcher_extension

    def mix(run: Any, x: Any, *args: Any, **more: Any) -> Any:
        return 0.9 * run(x, *args, **more) + 0.2 * x

    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, mix)


def inside_apply(model: Any) -> None:
    import comfy.patcher_extension

    def louder(run: Any, x: Any, *args: Any, **more: Any) -> Any:
        return run(x * 1.1, *args, **more)

    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, louder)


def wrapped_weight(model: Any) -> None:
    model.add_weight_wrapper(WEIGHT, lambda weight: weight * 1.5)


GUIDANCE = 2.0


def text(record: Any) -> list[list[Any]]:
    return [[cross, {**options, "guidance": GUIDANCE}] for cross, options in record.conditioning()]


PATCHES = [
    shifted,
    merged_lora,
    louder_attention,
    replaced_block,
    around_model,
    around_apply,
    inside_apply,
    wrapped_weight,
]


def patched(*patches: Callable[[Any], None], name: str = "flux1") -> Any:
    model = MODELS[name].make().clone()
    for patch in patches:
        patch(model)
    return model
