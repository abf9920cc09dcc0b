"""Every linear layer of the real FLUX.1 has a place in ComfyUI's model, of the right shape. No weights: all on meta."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from trainer_core.adapters.comfy_format import to_comfy
from trainer_core.adapters.deltas import LowRank
from trainer_core.errors import AdapterError
from trainer_core.families.base import Base

CONFIG = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
"""transformer/config.json of FLUX.1-dev."""

HOST = """
import json, sys
sys.argv = sys.argv[:1] + ["--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy import lora, supported_models
from comfy.model_detection import detect_unet_config
given = json.load(sys.stdin)
state = {key: torch.empty(shape, device="meta") for key, shape in given["detect"].items()}
unet = detect_unet_config(state, "")
model = supported_models.Flux(unet).get_model({}, "", device="meta")
shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
keys = {k: v for k, v in lora.model_lora_keys_unet(model, {}).items() if isinstance(v, str)}
print("RESULT" + json.dumps({"unet": {k: v for k, v in unet.items() if isinstance(v, (int, str, list, bool))},
                              "shapes": shapes, "keys": keys}))
"""
"""What ComfyUI makes of a checkpoint with such shapes: its model's weights, and the LoRA keys that it looks for."""


@pytest.fixture(scope="module")
def flux() -> nn.Module:
    with torch.device("meta"):
        return FluxTransformer2DModel(**CONFIG)


@pytest.fixture(scope="module")
def linears(flux: nn.Module) -> dict[str, nn.Linear]:
    return {path: module for path, module in flux.named_modules() if isinstance(module, nn.Linear)}


def test_every_linear_layer_has_a_place_of_its_own(linears: dict[str, nn.Linear], base: Base) -> None:
    rows: dict[str, list[tuple[int, int, int]]] = {}
    for path in linears:
        place = base.lora_place(path)
        rows.setdefault(place.name, []).append((place.start, place.stop, place.total))
    assert len(linears) == 504
    for path, parts in rows.items():
        covered = [unit for start, stop, _ in sorted(parts) for unit in range(start, stop)]
        assert covered == list(range(parts[0][2])), f"{path}: rows overlap or are missing"


@pytest.fixture(scope="module")
def host(flux: nn.Module, comfyui: Path) -> dict:
    """Asks ComfyUI, in a process of its own."""
    wide = 24 * 128
    detect = {
        "double_blocks.0.img_attn.norm.key_norm.scale": [128],
        "img_in.weight": [wide, 64],
        "img_in.bias": [wide],
        "txt_in.weight": [wide, 4096],
        "vector_in.in_layer.weight": [wide, 768],
        "guidance_in.in_layer.weight": [wide, 256],
        "guidance_in.in_layer.bias": [wide],
        **{f"double_blocks.{k}.img_attn.proj.weight": [wide, wide] for k in range(19)},
        **{f"single_blocks.{k}.linear2.weight": [wide, 5 * wide] for k in range(38)},
    }
    done = subprocess.run(
        [sys.executable, "-c", HOST], input=json.dumps({"detect": detect}), capture_output=True, text=True, cwd=comfyui
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines and "ModuleNotFoundError" in done.stderr:
        pytest.skip("ComfyUI's requirements are not installed: " + done.stderr.strip().splitlines()[-1])
    assert lines, done.stderr[-3000:]
    found: dict = json.loads(lines[0].removeprefix("RESULT"))
    assert (found["unet"]["depth"], found["unet"]["depth_single_blocks"]) == (19, 38)
    return found


@pytest.mark.parametrize(
    "chosen",
    [lambda path: True, lambda path: path.endswith("to_v"), lambda path: path.endswith("proj_mlp")],
    ids=["all", "v alone", "an MLP alone"],
)
def test_every_key_and_shape_is_in_comfyuis_model(
    chosen: Callable[[str], bool], linears: dict[str, nn.Linear], base: Base, host: dict
) -> None:
    changes = {
        path: LowRank(
            torch.zeros(2, linear.in_features, device="meta"), torch.zeros(linear.out_features, 2, device="meta"), 1.0
        )
        for path, linear in linears.items()
        if chosen(path)
    }
    tensors = to_comfy(changes, base, torch.float32)
    modules = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
    assert len(tensors) == 3 * len(modules)
    for module in modules:
        assert module in host["keys"], f"ComfyUI would say: lora key not loaded: {module}"
        rows, columns = host["shapes"][host["keys"][module]]
        assert tensors[f"{module}.lora_A.weight"].shape[1] == columns, module
        assert tensors[f"{module}.lora_B.weight"].shape[0] == rows, module


def test_all_of_comfyuis_linear_layers_can_be_reached(linears: dict[str, nn.Linear], base: Base, host: dict) -> None:
    ours = {f"diffusion_model.{base.lora_place(path).name}.weight" for path in linears}
    theirs = {key for key, shape in host["shapes"].items() if key.endswith(".weight") and len(shape) == 2}
    assert ours == {key for key in theirs if key.startswith("diffusion_model.")}


def test_paths_of_another_depth_are_still_only_paths(base: Base) -> None:
    """The table does not know how deep a model is; only layers with other names are refused."""
    assert base.lora_place("transformer_blocks.18.attn.to_q").name == "double_blocks.18.img_attn.qkv"
    with pytest.raises(AdapterError):
        base.lora_place("transformer_blocks.18.attn.to_x")
