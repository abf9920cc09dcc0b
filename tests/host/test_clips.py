"""Clips in a real ComfyUI: what Load Dataset shows of them, and what Train LoRA gives of a video model's previews."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from trainer_core.config import DatasetConfig, JobConfig
from trainer_core.data.images import png_bytes
from trainer_core.runs.run_folder import RunFolder
from trainer_core.sampling.animation import webp_bytes

from ..trainer_core.clips import frame, write_clip, write_frames
from .conftest import node
from .server import ROOT, ComfyServer

RESULTS = """
import importlib, importlib.util, json, sys
from pathlib import Path
from types import SimpleNamespace
comfyui, pack, run = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)
import comfy.options; comfy.options.enable_args_parsing()
import execution, folder_paths, nodes, server
folder_paths.set_output_directory(str(Path(run).parent))
spec = importlib.util.spec_from_file_location("pack", Path(pack) / "__init__.py", submodule_search_locations=[pack])
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
train, core = (importlib.import_module(f"pack.{name}") for name in ("nodes.train_lora", "trainer_core.api"))
view = importlib.import_module("pack.nodes.training_view").TrainingView()
queue = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))
server.PromptServer.instance = SimpleNamespace(prompt_queue=queue, send_sync=lambda *_: None)
made = core.RunFolder(Path(run))
out = train.results(SimpleNamespace(run=made, job=made.job()), view)
components = out.args[5].get_components()
numbers = [sum(int(bit) << k for k, bit in enumerate((one[16::32, 8::16, 0] > .5).flatten())) for one in out.args[3]]
video = [*components.images.shape], float(components.frame_rate)
print(json.dumps([numbers, video, [one["filename"] for one in out.ui["images"]], out.ui["animated"]]))
"""


def test_load_dataset_shows_clips(server: ComfyServer) -> None:
    folder = server.base / "input" / "clips"
    folder.mkdir(parents=True)
    write_clip(folder / "a.mp4", range(30), 15)
    write_frames(folder / "walk", range(40, 60))
    frame(77).save(folder / "still.png")
    for name in ("a", "walk", "still"):
        (folder / f"{name}.txt").write_text(f"a {name} that is seen")
    result = server.run({"data": node("LoadDataset", folder="clips", resolutions="64", check=True)})
    assert result.status == "success", result.messages
    first, *rest = result.outputs["data"]["text"][0].splitlines()
    assert first.startswith("1 images and 2 clips (0:02); ")
    assert rest[0].startswith("checked 1 image, 2 clips: ")
    assert len(result.outputs["data"]["images"]) == 3


def test_train_lora_gives_the_frames_of_the_last_preview(comfyui: Path, tmp_path: Path) -> None:
    """With a run's folder as a video family leaves it."""
    made = RunFolder.create(tmp_path / "output", JobConfig(name="run", datasets=(DatasetConfig(folder="x"),)))
    made.save_checkpoint(
        1, {"lora.safetensors": save({"lora_unet_x.alpha": torch.tensor(1.0)}), "state.safetensors": b"y"}
    )
    samples = made.sample_folder(1)
    samples.mkdir(parents=True)
    for k in range(2):
        frames = [frame(40 * k + number) for number in range(9)]
        (samples / f"{k:02}.webp").write_bytes(webp_bytes(frames, 16.0))
        (samples / f"{k:02}.png").write_bytes(png_bytes(frames[0], {"frame_rate": "16"}))
    ran = subprocess.run(
        [sys.executable, "-c", RESULTS, str(comfyui), str(ROOT), str(made.path)],
        cwd=comfyui,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    numbers, video, shown, animated = json.loads(ran.stdout.splitlines()[-1])
    assert numbers == [*range(40, 49)]
    assert video == [[9, 64, 64, 3], 16.0]
    assert shown == ["00.webp", "01.webp"]
    assert animated == [True]
