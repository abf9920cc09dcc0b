"""What the page fills in when a preset is chosen. The route that asks for it is tested with the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .server import ROOT
from .small_checkpoints import sd15

ASKED = """
import importlib, importlib.util, json, sys
from pathlib import Path
comfyui, pack, base, asked = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, comfyui)
import comfy.options; comfy.options.enable_args_parsing()
import execution, nodes, server
spec = importlib.util.spec_from_file_location("a pack", Path(pack) / "__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["a pack"] = module
spec.loader.exec_module(module)
fill_in = importlib.import_module("a pack.nodes.preset").fill_in
errors = importlib.import_module("a pack.trainer_core.errors")
found = []
for one in json.loads(asked):
    try:
        found.append(fill_in(one))
    except errors.ConfigError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_values_are_filled_in_for_the_base(comfyui: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    sd15(checkpoints / "small.safetensors", whole=True, dtype=torch.float16)
    bases: list[Any] = [
        {"family": "auto", "source": "embedded", "folder_or_repo": ""},
        {"family": "auto", "source": "checkpoints/small.safetensors", "folder_or_repo": ""},
        {"family": "auto", "source": None, "folder_or_repo": ""},  # a MODEL of a loader that names no file
        {"family": "auto", "source": "checkpoints/none.safetensors"},
    ]
    asked = [{"subject": "character", "vram": "24 GB", "base": base} for base in bases]
    asked += [{"subject": "robot", "vram": "24 GB"}, {"subject": "style", "vram": "3 GB"}]
    command = [sys.executable, "-c", ASKED, str(comfyui), str(ROOT), str(tmp_path), json.dumps(asked)]
    ran = subprocess.run(command, cwd=comfyui, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    embedded, checkpoint, linked, *refused = json.loads(ran.stdout.splitlines()[-1])
    assert values(embedded)["FoundryLoadDataset", "resolutions"] == "64"  # what the embedded base draws
    assert values(checkpoint)["FoundryLoadDataset", "resolutions"] == "512"  # what SD 1.5 was made for
    assert values(linked)["FoundryLoadDataset", "resolutions"] == "1024"
    assert values(checkpoint)["FoundryConfigureLoRA", "rank"] == 32
    assert not [one for one in embedded if one["node"] == "FoundryPreset"]  # nothing to warn of
    assert "when it is loaded" in linked[0]["why"]
    assert all(one["why"] for filled in (embedded, checkpoint, linked) for one in filled)
    assert ["none.safetensors" in refused[0], "character" in refused[1], "12 GB" in refused[2]] == [True] * 3


def values(filled: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(one["node"], one["widget"]): one["value"] for one in filled}
