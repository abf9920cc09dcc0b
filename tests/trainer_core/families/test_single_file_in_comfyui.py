"""The files that we open are files that ComfyUI opens, and the model is the same there: its own reading is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer_core.families.flux1.model import pack, position_ids, unpack
from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.sources.layout import Layout
from trainer_core.families.sources.single_file import FilePart, find_part
from trainer_core.families.sources.tensors import TensorFile
from trainer_core.families.stable_diffusion.layouts import SD1, SDXL

from .checkpoints import Weights, original
from .small_models import seeded
from .test_fp8 import scaled

HOST = """
import sys
sys.argv, folder, names = sys.argv[:1] + ["--cpu"], sys.argv[1], sys.argv[2:]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management, comfy.sd, comfy.utils
import torch
for name in names:
    given = comfy.utils.load_torch_file(f"{folder}/{name}_inputs.safetensors")
    model = comfy.sd.load_diffusion_model(f"{folder}/{name}.safetensors", model_options={"dtype": torch.float32})
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    inputs = {key: value for key, value in given.items() if key not in ("x", "t")}
    with torch.no_grad():
        found = model.model.diffusion_model(given["x"], given["t"], **inputs)
    comfy.utils.save_torch_file({"found": found.float()}, f"{folder}/{name}_found.safetensors")
"""
CPU = torch.device("cpu")


def small_flux() -> Any:
    config = {**FLUX1.config("transformer"), "num_attention_heads": 1, "joint_attention_dim": 32}
    config |= {"num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": 16}
    return FluxTransformer2DModel.from_config(config)


def small_sd() -> Any:
    """The smallest that ComfyUI knows as SD 1.5."""
    config = {**SD1.config("unet"), "block_out_channels": [320], "layers_per_block": 1}
    config |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    return UNet2DConditionModel.from_config({**config, "mid_block_type": None})


def small_sdxl() -> Any:
    """KOALA 700M's pattern with the channels of its first level, which ComfyUI knows as an SDXL."""
    config = {**SDXL.config("unet"), "block_out_channels": [320, 320, 320], "layers_per_block": 1}
    config |= {"attention_head_dim": [5, 5, 5], "transformer_layers_per_block": [1, 2, 5], "mid_block_type": None}
    config["up_block_types"] = ["UpBlock2D"] * 3
    return UNet2DConditionModel.from_config(config)


def plain(weights: Weights) -> Weights:
    return weights


def old_fp8(weights: Weights) -> Weights:
    return {**scaled(weights, torch.float8_e4m3fn), "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def new_fp8(weights: Weights) -> Weights:
    made = scaled(weights, torch.float8_e4m3fn, "weight_scale")
    mark = torch.tensor(list(json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()))
    layers = [key.removesuffix("weight_scale") for key in made if key.endswith("weight_scale")]
    return {**made, **{f"{layer}comfy_quant": mark.to(torch.uint8) for layer in layers}}


MODELS: dict[str, tuple[Layout, Callable[[], Any], Callable[[Weights], Weights]]] = {
    "flux": (FLUX1, small_flux, plain),
    "flux_old_fp8": (FLUX1, small_flux, old_fp8),
    "flux_new_fp8": (FLUX1, small_flux, new_fp8),
    "sd": (SD1, small_sd, plain),
    "sdxl": (SDXL, small_sdxl, plain),
}


def inputs_of(layout: Layout) -> dict[str, Tensor]:
    """What ComfyUI's model is called with."""
    random = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    if layout is FLUX1:
        return {
            "x": drawn(2, 16, 4, 6),
            "t": torch.tensor([0.9, 0.3]),
            "context": drawn(2, 5, 32),
            "y": drawn(2, 16),
            "guidance": torch.tensor([3.5, 1.0]),
        }
    given = {"x": drawn(2, 4, 8, 12), "t": torch.tensor([900.0, 20.0])}
    if layout is SD1:
        return {**given, "context": drawn(2, 77, 768)}
    return {**given, "context": drawn(2, 77, 2048), "y": drawn(2, 2816)}


def ours(layout: Layout, file: Path, given: dict[str, Tensor]) -> Tensor:
    part = next(name for name in layout.parts if name in ("unet", "transformer"))
    found = find_part(layout, part, TensorFile(file))
    assert isinstance(found, FilePart)
    x, t, text = given["x"], given["t"], given["context"]
    if layout is FLUX1:
        model: Any = found.load(FluxTransformer2DModel, torch.float32, CPU)
        with torch.no_grad():
            packed = model(
                hidden_states=pack(x),
                encoder_hidden_states=text,
                pooled_projections=given["y"],
                timestep=t,
                guidance=given["guidance"],
                img_ids=position_ids(x.shape[2] // 2, x.shape[3] // 2, CPU),
                txt_ids=torch.zeros(text.shape[1], 3),
            ).sample
        return unpack(packed, x.shape[2], x.shape[3])
    model = found.load(UNet2DConditionModel, torch.float32, CPU)
    if layout is SDXL:
        # ComfyUI's model is given the whole vector, diffusers' puts it together: give it ours instead
        with torch.no_grad():
            embedded = model.add_embedding(given["y"])
        model.add_embedding.register_forward_hook(lambda *_: embedded)
        added: Any = {"text_embeds": torch.zeros(2, 1280), "time_ids": torch.zeros(2, 6)}
        with torch.no_grad():
            return model(x, t, text, added_cond_kwargs=added).sample
    with torch.no_grad():
        return model(x, t, text).sample


@pytest.fixture(scope="module")
def folder(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files, inputs and what ComfyUI makes of them; one ComfyUI for all, because starting it takes long."""
    folder = tmp_path_factory.mktemp("files")
    for name, (layout, make, change) in MODELS.items():
        part = next(part for part in layout.parts if part in ("unet", "transformer"))
        save_file(change(original(layout.name, part, seeded(make).state_dict())), folder / f"{name}.safetensors")
        save_file(inputs_of(layout), folder / f"{name}_inputs.safetensors")
    done = subprocess.run([sys.executable, "-c", HOST, folder, *MODELS], capture_output=True, text=True, cwd=comfyui)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unexpected" not in done.stderr.lower()
    return folder


@pytest.mark.host
@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_the_same_model_in_comfyui(name: str, folder: Path) -> None:
    layout = MODELS[name][0]
    theirs = load_file(folder / f"{name}_found.safetensors")["found"]
    found = ours(layout, folder / f"{name}.safetensors", load_file(folder / f"{name}_inputs.safetensors"))
    assert float((found - theirs).norm() / theirs.norm()) < 1e-4
