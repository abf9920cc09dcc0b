"""With control images, the denoiser says in ComfyUI what it says in training: a LoRA means there what was trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer_core.config import ModelConfig
from trainer_core.families.registry import open_base

from ..predicting import predicted

HOST = """
import sys
sys.argv, inputs, output, weights = sys.argv[:1] + ["--cpu"], *sys.argv[1:4]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management, comfy.sd, comfy.utils
import torch
given = comfy.utils.load_torch_file(inputs)
model = comfy.sd.load_diffusion_model(weights, model_options={"dtype": torch.float32})
comfy.model_management.load_models_gpu([model], force_full_load=True)
flux, found = model.model.diffusion_model, {}
for name, references, method in (("one", 1, {}), ("several", 3, {"ref_latents_method": "index"})):
    with torch.no_grad():
        found[name] = flux(
            given["x"], given["t"], context=given["text"], y=given["pooled"],
            ref_latents=[given[f"control{k}"] for k in range(references)], **method,
        )
comfy.utils.save_torch_file(found, output)
"""
"""One ReferenceLatent as ComfyUI takes it by default, and three with the method `index`."""


@pytest.mark.host
def test_control_images_are_seen_as_comfyui_sees_them(comfyui: Path, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    given = {
        "x": torch.randn(2, 16, 8, 8, generator=random),
        "t": torch.tensor([0.9, 0.3]),
        "text": torch.randn(2, 16, 64, generator=random),
        "pooled": torch.randn(2, 64, generator=random),
        "control0": torch.randn(2, 16, 8, 8, generator=random),
        "control1": torch.randn(2, 16, 4, 12, generator=random),
        "control2": torch.randn(2, 16, 6, 6, generator=random),
    }
    save_file(given, tmp_path / "inputs.safetensors")
    opened = open_base(ModelConfig(family="flux1_kontext", device="cpu", dtype="float32"))
    command = [sys.executable, "-c", HOST, tmp_path / "inputs.safetensors", tmp_path / "found.safetensors"]
    done = subprocess.run([*command, opened.denoiser_file], capture_output=True, text=True, cwd=comfyui)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(tmp_path / "found.safetensors")
    denoiser, text = opened.load_denoiser(), {"text": given["text"], "pooled": given["pooled"]}
    for name, count in (("one", 1), ("several", 3)):
        controls = [given[f"control{k}"] for k in range(count)]
        with torch.no_grad():
            ours = predicted(opened, denoiser, given["x"], given["t"], text, controls=controls)
        assert float((ours - theirs[name]).norm() / theirs[name].norm()) < 1e-4, name
