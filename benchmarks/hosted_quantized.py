"""What a step costs on a MODEL of ComfyUI's by the format of its weights: bytes of weights, and CPU seconds.

    python benchmarks/hosted_quantized.py [COMFYUI] [--width 512] [--steps 6]

Makes a FLUX.1 of ComfyUI's own class with random weights, writes it in each format that ComfyUI's files have, and
trains a LoRA on it as the stock loader gives it. Each in a process of its own. Prints a table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.host.comfy_models.quantized import FORMATS, loaded, weight_bytes, write  # noqa: E402
from tests.host.pack import comfy_on_cpu  # noqa: E402

PLAIN = "fp32"
SIZE = 256
"""Of the pictures, in pixels."""


def measured(comfyui: Path, name: str, width: int, steps: int) -> dict[str, Any]:
    """One format, in this process."""
    comfy_on_cpu(comfyui)
    import numpy as np
    from PIL import Image
    from safetensors.torch import save_file

    from tests.host.comfy_models.hosted import linked, trained
    from tests.host.comfy_models.zoo import MODELS

    small = MODELS["flux1"]
    sizes = {"hidden_size": width, "num_heads": width // 128, "depth": 2, "depth_single_blocks": 4, "mlp_ratio": 4.0}
    made = replace(small, config=small.config | sizes).make()
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = Path(scratch), Path(scratch) / "model.safetensors"
        tensors = {key: one.clone() for key, one in made.model.diffusion_model.state_dict().items()}
        if name == PLAIN:
            save_file(tensors, file)
        else:
            write(tensors, name, file)
        del made, tensors
        model = loaded(file)
        (folder / "data").mkdir()
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / f"{number}.png")
        job = {
            "name": "measured",
            "model": linked(model),
            "datasets": [{"folder": str(folder / "data"), "resolutions": [SIZE], "default_caption": "a b c"}],
            "train": {"steps": steps, "batch_size": 1, "gradient_checkpointing": True},
        }
        at: list[float] = []

        def watch(run: Any) -> None:
            at.extend(time.process_time() for event in run.events() if type(event).__name__ == "StepDone")

        run = trained(folder / "runs", job, watch)
        if run.error:
            raise run.error
    return {
        "weights": weight_bytes(model),
        "seconds": statistics.median(later - earlier for earlier, later in pairwise(at[1:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", nargs="?", type=Path, default=Path.home() / "ComfyUI")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measured(given.comfyui, given.only, given.width, given.steps)))
        return
    print("| format | weights, MB | of fp32 | CPU seconds a step | of fp32 |\n|---|---|---|---|---|")
    plain: dict[str, Any] = {}
    for name in (PLAIN, *FORMATS):
        command = [sys.executable, __file__, str(given.comfyui), "--only", name]
        command += ["--width", str(given.width), "--steps", str(given.steps)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(said.splitlines()[-1])
        plain = plain or found
        shares = (found[key] / plain[key] for key in ("weights", "seconds"))
        print(
            "| {} | {:.1f} | {:.2f} | {:.2f} | {:.2f} |".format(
                name, found["weights"] / 1e6, next(shares), found["seconds"], next(shares)
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
