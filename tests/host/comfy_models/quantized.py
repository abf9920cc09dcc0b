"""Files of quantized weights as ComfyUI's loaders read them (`comfy_quant`), made from plain ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple


class Format(NamedTuple):
    """One of `comfy.quant_ops.QUANT_ALGOS`."""

    algorithm: str
    making: Mapping[str, Any] = MappingProxyType({})
    """How a weight is quantized."""
    telling: Mapping[str, Any] = MappingProxyType({})
    """What a file says of it beside the algorithm."""


_ROTATED = {"convrot_groupsize": 64}
FORMATS = {
    "fp8": Format("float8_e4m3fn", {"scale": "recalculate"}),
    "mxfp8": Format("mxfp8"),
    "nvfp4": Format("nvfp4", {"scale": "recalculate"}),
    "int8": Format("int8_tensorwise"),
    "int8 rotated": Format(
        "int8_tensorwise", {"convrot": True, "per_channel": True, **_ROTATED}, {"convrot": True, **_ROTATED}
    ),
    "w4a4": Format("convrot_w4a4", _ROTATED, _ROTATED),
    "w4a8": Format("asym_w4a8_int8", _ROTATED, {"group_size": 16, **_ROTATED}),
}


def write(tensors: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """Writes a FLUX denoiser with the linear layers of its blocks in a format; gives the weights that they stand for.

    Args:
        tensors: fp32, by ComfyUI's names.
    """
    import torch
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
    from safetensors.torch import save_file

    form, found, meant = FORMATS[name], {}, {}
    telling = json.dumps({"format": form.algorithm, **form.telling}).encode()
    for key, weight in tensors.items():
        if weight.dim() == 2 and "blocks." in key:
            packed = QuantizedTensor.from_float(
                weight, QUANT_ALGOS[form.algorithm]["comfy_tensor_layout"], **form.making
            )
            found |= {part: value.contiguous() for part, value in packed.state_dict(key).items()}
            found[key.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(telling), dtype=torch.uint8)
            meant[key] = packed.dequantize().to(weight.dtype)
        else:
            found[key] = meant[key] = weight
    save_file(found, file)
    return meant


def loaded(file: Path) -> Any:
    """A MODEL as UNETLoader gives it."""
    import comfy.sd
    import torch

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})


def weight_bytes(model: Any) -> int:
    """Bytes that a MODEL's weights take, scales included."""
    return sum(value.nbytes for value in model.model.diffusion_model.state_dict().values())
