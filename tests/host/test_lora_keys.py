"""Every adapted layer of the real SD 1.5, SDXL and FLUX.1 has its place and shape in ComfyUI's model: no key is left.

ComfyUI's weights that it computes with each adapter equal ours, DoRA's too, and at other strengths than 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .server import ROOT

TOLERANCE = 1e-6

LAYERS = {
    # by hand: in UNets 16 transformers with proj_in and proj_out around their blocks (SD 1.5: one block each, SDXL: 70
    # in 11 transformers) of two attentions of 4 layers and a feed-forward of 2; a time embedding for each residual
    # block; SDXL has 17 residual blocks and SD 1.5 has 22
    ("sd1", "lora"): 16 * 2 + 16 * 10,
    ("sd1", "lora with text encoders"): 192 + 12 * 6,
    ("sd1", "lora with convolutions"): 192 + 22 * 2 + 14 + 6,
    ("sd1", "lora with all"): 192 + 22 + 64 + 72,
    ("sdxl", "lora"): 11 * 2 + 70 * 10,
    ("sdxl", "lora with text encoders"): 722 + 12 * 6 + 32 * 6,
    ("sdxl", "lora with convolutions"): 722 + 17 * 2 + 11 + 4,
    ("sdxl", "lora with all"): 722 + 17 + 49 + 264,
    # a double block has 8 layers of attention and 4 of feed-forward, a single one 3 and 2; 2 and 1 of modulation
    ("flux1", "lora"): 19 * 12 + 38 * 5,
    ("flux1", "lora with all"): 19 * 14 + 38 * 6,
}
FUSED = {
    # q, k and v are one layer in ComfyUI, twice in a double block; in a single block with the MLP's first
    ("flux1", "lora"): 19 * 8 + 38 * 2,
    ("flux1", "lora with all"): 19 * 10 + 38 * 3,
}


def run(script: str, *arguments: Path) -> Any:
    """What a script of this folder found in ComfyUI."""
    path = Path(__file__).with_name(script)
    command = [sys.executable, str(path), *map(str, arguments)]
    ran = subprocess.run(command, cwd=arguments[0], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1].removeprefix("RESULT"))


@pytest.fixture(scope="module")
def found(comfyui: Path) -> dict[str, dict[str, Any]]:
    return run("lora_keys.py", comfyui, ROOT)


@pytest.mark.parametrize("layout", ["sd1", "sdxl", "flux1"])
def test_every_key_is_loaded_in_the_right_shape(layout: str, found: dict[str, dict[str, Any]]) -> None:
    ours = {name.split(" ", 1)[1]: one for name, one in found.items() if name.startswith(f"{layout} ")}
    assert ours.pop("originals", []) == []
    assert ours.keys() >= {"lora", "lora with all", "dora with all", "lokr", "lokr with all", "loha with all"}
    for name, one in ours.items():
        kind, _, which = name.partition(" ")
        same = f"lora {which}" if which else "lora"
        layers = LAYERS[layout, same]
        assert one["layers"] == layers, name
        assert one["modules"] == (FUSED.get((layout, name), layers) if kind == "lora" else layers), name
        assert one["unloaded"] == [], name
        assert one["patches"] == one["modules"], name
        assert one["wrong"] == [], name
    assert all(one["text layers"] for name, one in ours.items() if "text" in name)


def test_comfyuis_weights_are_ours(comfyui: Path) -> None:
    found = run("lora_weights.py", comfyui, ROOT)
    assert len(found) == 4 * 3 * 3
    for name, (effect, difference) in found.items():
        assert effect > 0.01, name
        assert difference < TOLERANCE, name
