"""What a training step costs beside forward, backward and optimizer: drawing, clipping, averaging, metrics, events.

    OMP_NUM_THREADS=1 python benchmarks/step_overhead.py [--steps 40] [--profile]

A FLUX.1 of 36 M random weights at 256 + 16 tokens, rank 16 on attention and feed-forward, fp32, by the whole trainer in
CPU time of all threads (so that another's load does not count). The promise: at most 3 %.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trainer_core.config import JobConfig  # noqa: E402
from trainer_core.families.flux1.model import Flux  # noqa: E402
from trainer_core.job import TrainingJob  # noqa: E402
from trainer_core.runs.events import Event, StepDone  # noqa: E402
from trainer_core.training.flat_optimizer import FlatOptimizer  # noqa: E402
from trainer_core.training.update import Updater  # noqa: E402

_WARM = 5
"""Steps that are not counted."""


def larger(self: Flux, expert: str = "") -> Any:  # noqa: ARG001
    """In the place of the embedded base's denoiser, one of 36 M weights that reads the same."""
    from diffusers import FluxTransformer2DModel

    config = {**self.source.config("transformer"), "num_layers": 3, "num_single_layers": 4, "num_attention_heads": 8}
    config |= {"attention_head_dim": 64, "axes_dims_rope": [16, 24, 24]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FluxTransformer2DModel.from_config(config).requires_grad_(False).to(self.device, self.dtype)


def counted(times: list[float], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose CPU time in its own thread is added up."""

    def call(*given: Any, **named: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*given, **named)
        finally:
            times.append(time.thread_time() - started)

    return call


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="also say which functions the rest is spent in")
    args = parser.parse_args()
    parts: dict[str, list[float]] = {"forward and backward": [], "optimizer": []}
    Flux.load_denoiser = larger  # type: ignore[method-assign]
    counts = (Updater, "_gradients", "forward and backward"), (FlatOptimizer, "step", "optimizer")
    for kind, name, part in counts:
        setattr(kind, name, counted(parts[part], getattr(kind, name)))
    profile, marks = cProfile.Profile(), list[float]()

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            if event.step == _WARM:
                for times in parts.values():
                    times.clear()
                if args.profile:
                    profile.enable()
            if event.step in (_WARM, args.steps):
                marks.append(time.process_time())
            if event.step == args.steps:
                profile.disable()

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).resize((256, 256)).save(data / f"{number}.png")
            (data / f"{number}.txt").write_text(f"a [trigger], number {number}")
        job = JobConfig(
            name="overhead",
            model={"source": "embedded", "device": "cpu"},
            adapter={"rank": 16, "targets": "attention_mlp"},
            datasets=[{"folder": str(data), "resolutions": [256], "trigger": "zorble"}],
            train={"steps": args.steps, "gradient_checkpointing": False, "ema_decay": 0.99},
            sample={"before_training": False, "every": 1000},
        )
        TrainingJob.new(Path(folder) / "runs", job, queue_up=False).run_here(listen)
    steps, whole = args.steps - _WARM, marks[1] - marks[0]
    for name, times in parts.items():
        print(f"{name}: {1000 * sum(times) / steps:.1f} ms a step")
    rest = whole - sum(map(sum, parts.values()))
    print(f"rest: {1000 * rest / steps:.2f} ms a step, {100 * rest / whole:.2f} % of {1000 * whole / steps:.1f} ms")
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
