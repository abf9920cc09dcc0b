"""What ComfyUI knows of the pack: its nodes, their sockets and widgets, help pages, templates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from .server import PACK, ROOT, ComfyServer

SNAPSHOT = Path(__file__).with_name("node_info.json")
NODES = {
    "FoundryLoadDataset",
    "FoundryCaptionWithTrigger",
    "FoundryConfigureLoRA",
    "FoundryQuantizeBase",
    "FoundryPreset",
    "FoundryTrainingOptions",
    "FoundryRegularization",
    "FoundrySampleSettings",
    "FoundryTrainLoRA",
    "FoundrySaveCheckpoint",
    "FoundryPreviewSamples",
    "FoundryLoadBase",
    "FoundryLoadRun",
    "FoundryDatasetImages",
    "FoundryCaptionDataset",
    "FoundryCaptionDrafts",
}
LISTS = {
    "warm_start",
    "captioner",
    "source",
    "vae",
    "training_adapter",
    "recovery_adapter",
    "model_low_noise",
    "sampler",
    "scheduler",
}
LISTS |= {"text_encoder", *(f"text_encoder_{number}" for number in (2, 3, 4))}
"""Widgets that list the files, and the samplers, that this ComfyUI has."""
NEW_MODULES = """
import asyncio, importlib.util, json, sys
from pathlib import Path
comfyui, pack = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)
import comfy.options; comfy.options.enable_args_parsing()
import execution, nodes, server, torch
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("a pack", Path(pack) / "__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["a pack"] = module
spec.loader.exec_module(module)
asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


def test_nodes_are_registered_under_our_category(server: ComfyServer) -> None:
    known = server.get("/object_info")
    assert known.keys() >= NODES
    assert {known[name]["category"] for name in NODES} == {"LoRA Foundry"}
    assert all(known[name]["description"] for name in NODES)


def test_sockets_and_widgets_are_what_saved_workflows_rely_on(server: ComfyServer) -> None:
    """Workflows keep widgets' values by position: change the snapshot (UPDATE_SNAPSHOTS=1) only at the end."""
    known = server.get("/object_info")
    found = {name: _shape(known[name]) for name in sorted(NODES)}
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_input_and_output_has_a_tooltip(server: ComfyServer) -> None:
    known = server.get("/object_info")
    for name in NODES:
        inputs = {**known[name]["input"].get("required", {}), **known[name]["input"].get("optional", {})}
        assert all(options[0].get("tooltip") for _, *options in inputs.values()), name
        assert all(known[name]["output_tooltips"]), name


def test_help_pages_templates_and_script_are_served(server: ComfyServer) -> None:
    paths = [f"/extensions/{PACK}/docs/{name}.md" for name in NODES] + [f"/extensions/{PACK}/js/lora_foundry.js"]
    for path in paths:
        with urllib.request.urlopen(server.url + path, timeout=60) as answer:
            assert answer.status == 200
    shipped = {path.stem for path in (ROOT / "example_workflows").glob("*.json")}
    assert set(server.get("/workflow_templates")[PACK]) == shipped


def test_loading_the_pack_imports_nothing_heavy(comfyui: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NEW_MODULES, str(comfyui), str(ROOT)],
        cwd=comfyui,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    new = set(json.loads(ran.stdout.splitlines()[-1]))
    assert "a pack" in new
    assert not new & {"diffusers", "transformers", "peft", "accelerate", "huggingface_hub", "torchvision", "scipy"}


def _shape(info: dict[str, Any]) -> dict[str, Any]:
    """What a saved workflow depends on: names, order and types, and options that choices were made from."""
    inputs = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            shown = {key: value for key, value in options[0].items() if key not in ("tooltip", "multiselect")}
            if name in LISTS:
                del shown["options"]
            inputs[name] = [group, kind, shown]
    return {
        "inputs": inputs,
        "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
        "output_node": info["output_node"],
    }
