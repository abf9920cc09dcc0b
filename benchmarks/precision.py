"""What quantizing the frozen base costs, on the embedded base: `python benchmarks/precision.py`.

First the error of the prediction by each format (no training, seconds). Then, for the formats that are named, the
demo's job on a base held in it, judged on pictures that the full base draws with the LoRA; results are appended to a
JSON-lines file as they come, and what is there already is not done again. One training with its judging takes one to
two minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from features import NUMBERS, draw_pictures, job_of, measure
from recipes import RECIPES

from trainer_core.config import ModelConfig
from trainer_core.embedded.demo_data import TRIGGER
from trainer_core.embedded.evaluate import Evaluation, plain_prompts
from trainer_core.families.conditioning import MAIN, Collated
from trainer_core.families.registry import open_base
from trainer_core.families.texts import stack_text
from trainer_core.memory.formats import NAMES
from trainer_core.memory.packed_linear import PackedLinear

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
_PROMPTS = 16
DEMO = next(recipe for recipe in RECIPES if recipe.name == "dop_weight_2")
"""The demo's recipe."""


def errors() -> Iterator[tuple[str, float, float]]:
    """Format, bits per packed weight, and relative error of the prediction in fp32, over times and captions."""
    full = open_base(ModelConfig(device="cpu"))
    full.load_text_encoders()
    prompts = [prompt.text for prompt in plain_prompts(_PROMPTS)]
    text = stack_text(full.encode_prompts(prompts), full.device)
    source = torch.Generator().manual_seed(5)
    inputs = [(torch.randn(_PROMPTS, 16, 8, 8, generator=source), torch.full((_PROMPTS,), t)) for t in TIMES]

    def predictions(quantization: str, low_rank: int) -> tuple[torch.Tensor, float]:
        base = open_base(ModelConfig(device="cpu", quantization=quantization, low_rank=low_rank))
        denoiser = base.load_denoiser()
        packed = [one for one in denoiser.modules() if isinstance(one, PackedLinear)]
        weights = sum(one.in_features * one.out_features for one in packed)
        held = sum(buffer.nbytes for one in packed for name, buffer in one.named_buffers() if name != "bias")
        with torch.no_grad():
            said = [base.predict(denoiser, {MAIN: x}, t, Collated(text, (), None, None))[MAIN] for x, t in inputs]
        return torch.cat(said), 8 * held / weights if weights else 32.0

    expected, _ = predictions("none", 0)
    for name, rank in [("none", 0), *((name, 0) for name in NAMES), ("4bit", 16), ("3bit", 16)]:
        if name == "none":
            base = open_base(ModelConfig(device="cpu", dtype="bfloat16"))
            with torch.no_grad():
                denoiser = base.load_denoiser().float()  # weights of bf16, computed in fp32
                base.dtype = torch.float32
                said = [base.predict(denoiser, {MAIN: x}, t, Collated(text, (), None, None))[MAIN] for x, t in inputs]
            found, bits = torch.cat(said), 16.0
        else:
            found, bits = predictions(name, rank)
        error = (found - expected).norm() / expected.norm()
        yield f"{'bfloat16' if name == 'none' else name}{f' + rank {rank}' if rank else ''}", bits, error.item()


def table(lines: list[dict[str, Any]]) -> str:
    """Mean of each number over the seeds, a row for each format."""
    rows = [f"| base held in | seeds | {' | '.join(NUMBERS)} |", "|---" * (2 + len(NUMBERS)) + "|"]
    for name in dict.fromkeys(line["recipe"] for line in lines):
        own = [line for line in lines if line["recipe"] == name]
        cells = [f"{statistics.mean(line[number] for line in own):.3f}" for number in NUMBERS]
        rows.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", help="to train with: none, 6bit, …; default: no training")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=100, help="behind each number")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "precision.jsonl")
    args = parser.parse_args()
    print("| base held in | bits per weight | error of the prediction |\n|---|---|---|")
    for name, bits, error in errors():
        print(
            f"| {name} | {bits:.2f} | {100 * error:.{max(1, 1 - math.floor(math.log10(100 * error)))}f} % |", flush=True
        )
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(line["recipe"], line["seed"]) for line in lines}
    missing = [(name, seed) for seed in range(1, args.seeds + 1) for name in args.formats if (name, seed) not in done]
    if missing:
        evaluation = Evaluation(TRIGGER, args.pictures)
        with tempfile.TemporaryDirectory() as folder:
            draw_pictures(Path(folder))
            for name, seed in missing:
                job = job_of(DEMO, seed, Path(folder))
                job = job.model_copy(update={"model": job.model.but(quantization=name)})
                lines.append(measure(name, job, evaluation, Path(folder)))
                print(json.dumps(lines[-1]), flush=True)
                with args.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    if lines:
        print(table(lines))


if __name__ == "__main__":
    main()
