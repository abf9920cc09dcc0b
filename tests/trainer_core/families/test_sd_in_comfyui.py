"""Prompts are to the trainer what they are to ComfyUI's text encoding: its tokenizer, its CLIPs, small ones here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainer_core.config import ModelConfig
from trainer_core.families.registry import open_base

from .small_models import CLIP, SMALL, seeded

PROMPTS = ["a red fox on grass, photograph", "", "zorble!"]
"""Without weights and of one chunk: brackets, and what follows the 75th token, ComfyUI reads in its own way."""
ENCODERS = {
    "text_encoder": {**CLIP, "vocab_size": 49408, "eos_token_id": 49407},
    "text_encoder_2": {
        **CLIP,
        "vocab_size": 49408,
        "eos_token_id": 49407,
        "hidden_size": 64,
        "intermediate_size": 128,
        "projection_dim": 64,
        "hidden_act": "gelu",
    },
}

HOST = """
import json, sys
sys.argv, weights, output, settings = sys.argv[:1] + ["--cpu"], *sys.argv[1:4]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd1_clip, comfy.sdxl_clip, comfy.utils
import torch
settings, given, found = json.loads(settings), comfy.utils.load_torch_file(weights), {}
configs = {"clip_l_model_config": settings["text_encoder"], "clip_g_model_config": settings["text_encoder_2"]}

def fill(clip, part):
    own = {key.removeprefix(part + "/"): value for key, value in given.items() if key.startswith(part + "/")}
    missing, unexpected = clip.load_sd(own)
    assert not unexpected and set(missing) <= {"text_projection.weight"}, (missing, unexpected)

sd = comfy.sd1_clip.SD1ClipModel(dtype=torch.float32, model_options=configs)
xl = comfy.sdxl_clip.SDXLClipModel(dtype=torch.float32, model_options=configs)
fill(sd.clip_l, "text_encoder"), fill(xl.clip_l, "text_encoder"), fill(xl.clip_g, "text_encoder_2")
for k, prompt in enumerate(settings["prompts"]):
    with torch.no_grad():
        found[f"sd15 {k}"] = sd.encode_token_weights(comfy.sd1_clip.SD1Tokenizer().tokenize_with_weights(prompt))[0]
        text, pooled = xl.encode_token_weights(comfy.sdxl_clip.SDXLTokenizer().tokenize_with_weights(prompt))[:2]
    found[f"sdxl {k}"], found[f"sdxl pooled {k}"] = text, pooled
comfy.utils.save_torch_file({key: value.contiguous() for key, value in found.items()}, output)
"""


def with_comfyuis_tokenizer(family: str, folder: Path, comfyui: Path) -> Path:
    """A small model whose CLIPs have ComfyUI's vocabulary."""
    SMALL[family](folder)
    for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if not (folder / part).is_dir():
            continue
        shutil.rmtree(folder / part)
        seeded(lambda part=part, kind=kind: kind(CLIPTextConfig(**ENCODERS[part]))).save_pretrained(folder / part)
        tokenizer = folder / part.replace("text_encoder", "tokenizer")
        shutil.rmtree(tokenizer)
        shutil.copytree(comfyui / "comfy" / "sd1_tokenizer", tokenizer)
    return folder


@pytest.mark.host
def test_prompts_are_encoded_as_comfyui_encodes_them(comfyui: Path, tmp_path: Path) -> None:
    bases = {}
    for family in ("sd15", "sdxl"):
        folder = with_comfyuis_tokenizer(family, tmp_path / family, comfyui)
        bases[family] = open_base(ModelConfig(family=family, source=str(folder), device="cpu"))
        bases[family].load_text_encoders()
    given = {}
    for part, encoder in bases["sdxl"].text_encoders().items():
        for name, tensor in encoder.state_dict().items():
            named = name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
            given[f"{part}/{named}"] = tensor
    save_file(given, tmp_path / "clips.safetensors")
    settings = {**ENCODERS, "prompts": PROMPTS}
    command = [sys.executable, "-c", HOST, tmp_path / "clips.safetensors", tmp_path / "found.safetensors"]
    done = subprocess.run([*command, json.dumps(settings)], capture_output=True, text=True, cwd=comfyui)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(tmp_path / "found.safetensors")
    for k in range(len(PROMPTS)):
        sd, xl = (bases[family].encode_prompts(PROMPTS)[k] for family in ("sd15", "sdxl"))
        torch.testing.assert_close(sd["text"], theirs[f"sd15 {k}"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(xl["text"], theirs[f"sdxl {k}"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(xl["pooled"], theirs[f"sdxl pooled {k}"][0], rtol=1e-4, atol=1e-5)
