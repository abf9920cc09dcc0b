"""What loading a quantized denoiser takes: host memory, and seconds, when it is packed and when it is in the cache.

    python benchmarks/packed_loading.py [--width 1024] [--formats int8 4bit]

Writes a FLUX.1 of so many channels and 2 + 2 blocks with random weights (bf16) into a temporary folder, and loads it in
processes of their own. Peak is resident memory beyond what the process had before.
The promise: peak ≤ 1.2 x what is in memory afterwards + 300 MB, and never the whole model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from diffusers import FluxTransformer2DModel  # noqa: E402

from trainer_core.data.cache import TensorCache  # noqa: E402
from trainer_core.families.sources.diffusers_folder import FolderPart  # noqa: E402
from trainer_core.memory.packing import Packing  # noqa: E402

CPU = torch.device("cpu")


def write(folder: Path, width: int) -> None:
    heads = {"attention_head_dim": 128, "num_attention_heads": width // 128}
    small = {"num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 64, "pooled_projection_dim": 64}
    FluxTransformer2DModel(**heads, **small).bfloat16().save_pretrained(folder / "transformer")


def load(folder: Path, name: str) -> dict[str, float]:
    """In this process."""
    part = FolderPart(folder / "transformer")
    small = torch.randn(64, 1024)
    Packing("int8" if name == "none" else name).packed("", small, torch.nn.Linear(1024, 64), torch.float32)  # imports
    packing = None if name == "none" else Packing(name, "measured", TensorCache(folder / "cache"))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew (Linux)
    before, start, cpu = _peak(), time.perf_counter(), time.process_time()
    model = part.load(FluxTransformer2DModel, torch.bfloat16, CPU, packing)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = sum(value.nbytes for value in model.state_dict().values())
    return {"size": size / 1e6, "peak": (_peak() - before) / 1e6, "seconds": seconds, "cpu": cpu}


def _peak() -> int:
    """Most resident memory since the mark was set, in bytes."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--formats", nargs="*", default=["int8", "6bit", "4bit"])
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "FORMAT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(Path(args.load[0]), args.load[1])))
        return
    print("| base | in memory, MB | peak, MB | allowed | CPU seconds | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.width)
        for name in ("none", *(one for one in args.formats for _ in range(2))):
            command = [sys.executable, __file__, "--load", folder, name]
            found = json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            )
            allowed = 1.2 * found["size"] + 300
            print(
                f"| {name} | {found['size']:.0f} | {found['peak']:.0f} | {allowed:.0f} | {found['cpu']:.2f} "
                f"| {found['seconds']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
