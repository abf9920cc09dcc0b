"""How much host memory loading a part of a checkpoint takes: peak resident memory beyond what the process had before.

    python benchmarks/loading_memory.py [FOLDER]

Writes a checkpoint with SDXL's architecture of 2 GB and more into a folder (a temporary one by default), loads each of
its parts in a process of its own, once in the file's precision and once in another, and removes it.
The promise: peak ≤ 1.2 x the part's size in memory + 300 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trainer_core.families.names import Naming, Place  # noqa: E402
from trainer_core.families.parts import clip  # noqa: E402
from trainer_core.families.parts import kl_names as vae  # noqa: E402
from trainer_core.families.registry import family_spec  # noqa: E402
from trainer_core.families.sources.loading import empty_model  # noqa: E402
from trainer_core.families.sources.source import open_source  # noqa: E402
from trainer_core.families.stable_diffusion import unet  # noqa: E402
from trainer_core.families.stable_diffusion.layouts import SDXL  # noqa: E402

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
_ALLOWED = 300 << 20


def kind(part: str) -> Any:
    import diffusers
    import transformers

    names = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    return getattr(diffusers, names[part], None) or getattr(transformers, names[part])


def naming(part: str, shapes: dict[str, tuple[int, ...]]) -> Naming:
    if part == "unet":
        plan = unet.diffusers_unet(shapes)
        assert plan is not None
        return unet.original_names(plan)
    if part == "vae":
        return vae.original_names(4)
    if part == "text_encoder_2":
        return clip.openclip_names({"text_projection": ()})
    return lambda name: Place("text_model." + name.removeprefix("text_model."))


def write_checkpoint(path: Path) -> None:
    """SDXL in fp16, zeros (what is in the weights costs no memory): 6.9 GB, written tensor by tensor."""
    header: dict[str, Any] = {}
    end = 0
    for part, prefix in PREFIXES.items():
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in empty_model(kind(part), SDXL.config(part)).state_dict().items()
        }
        original = naming(part, shapes)
        for name, shape in shapes.items():
            origin = original(name)
            if prefix + origin.name in header:
                continue  # a piece of a fused tensor that is there
            whole = shape[::-1] if origin.transposed else (shape[0] * origin.total, *shape[1:])
            size = 2 * torch.Size(whole).numel()
            header[prefix + origin.name] = {"dtype": "F16", "shape": list(whole), "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bytes(1 << 24)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(block)):  # zeros on the disk, not a hole in the file
            file.write(block[: min(len(block), end - start)])


def load(path: Path, part: str, dtype: str) -> dict[str, float]:
    """In this process: loads a part and says what it took, in MB."""
    from trainer_core.families.device import peak_memory

    cpu = torch.device("cpu")
    empty_model(kind(part), SDXL.config(part))  # so that what importing and building takes is not counted
    source = open_source(str(path), family_spec("sdxl"), SDXL)
    before = peak_memory(cpu)
    loaded = source.load(part, kind(part), getattr(torch, dtype), cpu)
    size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.parameters())
    peak = peak_memory(cpu) - before
    return {"size": size / 1e6, "peak": peak / 1e6, "allowed": (1.2 * size + _ALLOWED) / 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--load", nargs=3, metavar=("FILE", "PART", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(Path(args.load[0]), args.load[1], args.load[2])))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "sdxl.safetensors"
        write_checkpoint(path)
        print(f"checkpoint: {path.stat().st_size / 1e9:.2f} GB, SDXL in fp16")
        print(f"{'part':16}{'precision':12}{'in memory':>12}{'peak':>12}{'allowed':>12}   (MB)")
        kept = True
        for part in PREFIXES:
            for dtype in ("float16", "bfloat16") if part == "unet" else ("float16", "float32"):
                command = [sys.executable, __file__, "--load", str(path), part, dtype]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                kept &= found["peak"] <= found["allowed"]
                numbers = "".join(f"{found[key]:12.0f}" for key in ("size", "peak", "allowed"))
                print(f"{part:16}{dtype:12}{numbers}", flush=True)
    print("all within 1.2 x size + 300 MB" if kept else "NOT all within 1.2 x size + 300 MB")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
