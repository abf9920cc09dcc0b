"""What training takes on this machine's GPU: seconds a step and peak memory of models at real size, random weights.

    python benchmarks/gpu.py [--comfyui ~/ComfyUI] [--models FLUX Z-Image …] [--size 1024] [--steps 8] [--append]
    python benchmarks/gpu.py --tiny      # the same rows of tiny models on the CPU: only whether the script works

Each row is a process of its own and a whole run of the trainer on a MODEL of ComfyUI's own class: data, cache,
objective, updates. The first steps do not count (kernels are chosen, memory is found). A row that lacks memory says so.
A model takes ten minutes at most; `--append` adds the table to RESULTS.md. Beside each peak stands what the plan said.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tests.host.comfy_models.hosted  # noqa: E402, F401 - before ComfyUI is on the path, which has `tests` too

MODELS = {
    "FLUX.1-dev and Kontext": "flux1",
    "Z-Image-Turbo": "z_image",
    "Qwen-Image and Edit-2509": "qwen_image",
    "FLUX.2-klein-base-4B": "flux2",
    "FLUX.2-klein-base-9B": "flux2",
    "Wan2.2-T2V-A14B": "wan21_t2v",
    "SDXL": "sdxl",
}
"""Names in tests/host/comfy_models/zoo/real.py, and the tiny models like them."""
ROWS: dict[str, dict[str, Any]] = {
    "bf16": {"train": {"gradient_checkpointing": False}},
    "bf16, every 2nd block recomputed": {"memory": {"checkpoint_every": 2}},
    "bf16, recomputed, attention kept": {"memory": {"keep_attention": True}},
    "bf16, recomputed": {},
    "int8, recomputed": {"model": {"quantization": "int8"}},
    "4bit, recomputed": {"model": {"quantization": "4bit"}},
    "bf16, half of the blocks streamed": {"memory": {"layer_offloading": 0.5}},
    "bf16, all blocks streamed": {"memory": {"layer_offloading": 1.0}},
    "int8, all blocks streamed, inputs in host memory": {
        "model": {"quantization": "int8"},
        "memory": {"layer_offloading": 1.0, "offload_inputs": True},
    },
    "as planned for 16 GB, int8": {
        "model": {"quantization": "int8"},
        "memory": {"plan": "auto", "limit_gb": 16},
    },
}
MINUTES = 10
"""For each model."""
_UNCOUNTED = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "ComfyUI")
    parser.add_argument("--models", nargs="*", default=[], help="parts of their names; all without it")
    parser.add_argument("--rows", nargs="*", default=[], help="parts of their names; all without it")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measured(given, *given.row)))
        return
    lines = _head(given)
    print("\n".join(lines), flush=True)
    for model in _chosen(MODELS, given.models):
        until = time.monotonic() + 60 * MINUTES
        for row in _chosen(ROWS, given.rows):
            lines.append(_line(given, model, row, until - time.monotonic()))
            print(lines[-1], flush=True)
    if given.append:
        with (ROOT / "benchmarks" / "RESULTS.md").open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


def _chosen(names: Any, parts: list[str]) -> list[str]:
    return [name for name in names if not parts or any(part.lower() in name.lower() for part in parts)]


def _head(given: argparse.Namespace) -> list[str]:
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    day = datetime.now(timezone.utc).date()
    command = " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    return [
        "## Real sizes on a GPU",
        "",
        f"{day} · {where}, torch {torch.__version__} · commit {commit} · `{command}`",
        "",
        f"| model, {given.size} px, rank 16, batch 1 | setting | s a step | peak, GB | predicted, GB |",
        "|---|---|---|---|---|",
    ]


def _line(given: argparse.Namespace, model: str, row: str, seconds: float) -> str:
    if seconds <= 0:
        return f"| {model} | {row} | not run: {MINUTES} minutes are over | | |"
    command = [sys.executable, __file__, "--row", model, row, "--comfyui", str(given.comfyui)]
    command += ["--size", str(given.size), "--steps", str(given.steps), *["--tiny"] * given.tiny]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"| {model} | {row} | not finished: {MINUTES} minutes are over | | |"
    if ran.returncode:
        why = (ran.stderr.strip().splitlines() or ["?"])[-1][:100].replace("|", "/")
        return f"| {model} | {row} | failed: {why} | | |"
    found = json.loads(ran.stdout.splitlines()[-1])
    predicted = f"{found['predicted'] / 1e9:.2f}" if found["predicted"] else ""
    return f"| {model} | {row} | {found['seconds']:.3f} | {found['peak'] / 1e9:.2f} | {predicted} |"


def measured(given: argparse.Namespace, model: str, row: str) -> dict[str, Any]:
    """One row, in this process."""
    sys.path.append(str(given.comfyui))
    with mock.patch.object(sys, "argv", ["main.py", *["--cpu"] * given.tiny]):
        import_module("comfy.options").enable_args_parsing()
        import_module("comfy.cli_args")  # reads the arguments, once
    import numpy as np
    from PIL import Image

    from tests.host.comfy_models.hosted import linked, trained
    from tests.host.comfy_models.zoo import MODELS as TINY
    from tests.host.comfy_models.zoo.encoders import clip, vae
    from tests.host.comfy_models.zoo.real import REAL

    known = TINY[MODELS[model]] if given.tiny else REAL[model][1]
    patcher = known.make() if given.tiny else _random(known)
    settings = ROWS[row]
    size = 64 if given.tiny else given.size
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / "0.png")
        job = {
            "name": "measured",
            "model": linked(patcher, clip(known), vae(known), **settings.get("model", {})),
            "datasets": [{"folder": str(data), "resolutions": [size], "default_caption": "a b c"}],
            "train": {
                "steps": given.steps,
                "batch_size": 1,
                "gradient_checkpointing": True,
                **settings.get("train", {}),
            },
            "memory": {"plan": "manual", **settings.get("memory", {})},
            "save": {"every": 1000},
        }
        run = trained(Path(scratch) / "runs", job)
        if run.error:
            raise run.error
        steps = [one for one in run.run.metrics() if "seconds_per_step" in one]
        predicted = next((one["memory_predicted"] for one in run.run.metrics() if "memory_predicted" in one), None)
    counted = [one["seconds_per_step"] for one in steps[min(_UNCOUNTED, len(steps) - 1) :]]
    return {"seconds": statistics.median(counted), "peak": steps[-1]["peak_memory"], "predicted": predicted}


def _random(known: Any) -> Any:
    """A MODEL at its real size in bfloat16 in host memory, as a loader leaves it."""
    import comfy.model_management
    import comfy.model_patcher
    import torch

    found, cpu = known.found(), torch.device("cpu")
    found.set_inference_dtype(torch.bfloat16, None)
    device = comfy.model_management.get_torch_device()
    with torch.inference_mode():
        made = found.get_model(known.files(lambda *shape: torch.zeros(shape)), "", device=cpu)
        for weight in made.diffusion_model.parameters():
            scale = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.02
            weight.copy_(torch.randn(weight.shape, device=device, dtype=weight.dtype) * scale)
    return comfy.model_patcher.CoreModelPatcher(made, load_device=device, offload_device=cpu)


if __name__ == "__main__":
    main()
