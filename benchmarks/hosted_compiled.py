"""What `memory.compile` spares in a step on models of ComfyUI's own classes, and what the first step takes.

    python benchmarks/hosted_compiled.py [COMFYUI] [--rounds 3] [--steps 8] [--only MODEL] [--json FILE]

Random weights, pictures of 256 px. Each training in a process of its own, plain and compiled in turns; CPU seconds of a
step (medians), since others use these machines too. Prints a table for RESULTS.md.

    python benchmarks/hosted_compiled.py [COMFYUI] --gradients [MODEL …]

How far the gradients of recomputed blocks are from those of plain ones when they are compiled by everything but the C++
compiler, for each of the tests' tiny models; half a minute each.
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

from tests.host.pack import comfy_on_cpu  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "flux1": {"hidden_size": 512, "num_heads": 4, "depth": 2, "depth_single_blocks": 4, "mlp_ratio": 4.0},
    "qwen_image": {"num_attention_heads": 4, "num_layers": 4},
    "z_image": {"dim": 512, "n_heads": 4, "n_kv_heads": 4, "n_layers": 6, "axes_dims": [32, 48, 48]},
    "wan21_t2v": {"dim": 512, "ffn_dim": 2048, "num_heads": 4, "num_layers": 6},
}
"""Names of the tests' tiny models, and how they become larger: 20 to 40 M weights."""
SIZE = 256
"""Of the pictures, in pixels."""


def measured(comfyui: Path, name: str, *, compiled: bool, checkpointed: bool, steps: int) -> dict[str, Any]:
    """One training, in this process."""
    comfy_on_cpu(comfyui)
    import numpy as np
    from comfy.cli_args import args
    from PIL import Image

    args.use_pytorch_cross_attention = True  # as on GPUs
    from tests.host.comfy_models.hosted import linked, trained
    from tests.host.comfy_models.zoo import MODELS as ZOO

    small = ZOO[name]
    model = replace(small, config=small.config | MODELS[name]).make()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / f"{number}.png")
        job = {
            "name": "measured",
            "model": linked(model),
            "adapter": {"rank": 16, "targets": "attention_mlp"},
            "datasets": [{"folder": str(data), "resolutions": [SIZE], "default_caption": "a b c"}],
            "train": {"steps": steps, "gradient_checkpointing": checkpointed, "seed": 0},
            "memory": {"plan": "manual", "compile": compiled},
            "sample": {"prompts": []},
        }
        at, losses = [time.process_time()], []

        def watch(run: Any) -> None:
            for event in run.events():
                if type(event).__name__ == "StepDone":
                    at.append(time.process_time())
                    losses.append(event.loss)

        run = trained(Path(scratch) / "runs", job, watch)
        if run.error:
            raise run.error
        log = (run.run.path / "log.txt").read_text(encoding="utf-8")
    took = [later - earlier for earlier, later in pairwise(at)]
    return {
        "weights": sum(one.numel() for one in model.model.diffusion_model.parameters()),
        "first": took[0],
        "seconds": statistics.median(took[2:]),
        "loss": losses[-1],
        "gave up": "cannot be compiled" in log,
    }


def gradients(comfyui: Path, names: list[str]) -> None:
    """Prints a line for each model."""
    comfy_on_cpu(comfyui)
    from torch import _dynamo

    from tests.host.comfy_models.test_recompute_models import Trained, difference
    from tests.host.comfy_models.zoo import MODELS as ZOO

    plain_backend = _dynamo.lookup_backend("aot_eager")
    _dynamo.lookup_backend = lambda _name: plain_backend
    for name in names or [name for name, model in ZOO.items() if not model.refused]:
        _dynamo.reset()
        model = ZOO[name].make().model
        plain, compiled = (Trained(name, model, recomputed=one, compiled=one, passes=2) for one in (False, True))
        print(f"{name}: {difference(compiled, plain):.0e} {[one.message for one in compiled.told] or ''}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", nargs="?", type=Path, default=Path.home() / "ComfyUI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gradients", nargs="*", metavar="MODEL")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.gradients is not None:
        gradients(given.comfyui, given.gradients)
        return
    if given.way:
        way = {"compiled": "compiled" in given.way, "checkpointed": "checkpointed" in given.way}
        print(json.dumps(measured(given.comfyui, given.only, steps=given.steps, **way)))
        return
    print("| model | weights, M | checkpointed | CPU s a step | compiled | ratio | first step, s | last losses |")
    print("|---|---|---|---|---|---|---|---|")
    found: dict[str, Any] = {}
    for name in [given.only] if given.only else MODELS:
        for checkpointed in ("", " checkpointed"):
            ways: dict[str, list[dict[str, Any]]] = {"plain": [], "compiled": []}
            for _ in range(given.rounds):
                for way, those in ways.items():
                    command = [sys.executable, __file__, str(given.comfyui), "--only", name]
                    command += ["--way", way + checkpointed, "--steps", str(given.steps)]
                    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    those.append(json.loads(said.splitlines()[-1]))
            plain, compiled = (statistics.median(one["seconds"] for one in those) for those in ways.values())
            last = ways["compiled"][-1]
            if last["gave up"]:
                sys.exit(f"{name} was not compiled")
            found[name + checkpointed] = compiled / plain
            first = statistics.median(one["first"] for one in ways["compiled"])
            row = [name, f"{last['weights'] / 1e6:.0f}", "yes" if checkpointed else "no", f"{plain:.3f}"]
            row += [f"{compiled:.3f}", f"{compiled / plain:.2f}", f"{first:.0f}"]
            row += [f"{ways['plain'][-1]['loss']:.6f}, {last['loss']:.6f}"]
            print(f"| {' | '.join(row)} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"ratios": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
