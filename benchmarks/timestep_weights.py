"""Where is there something to learn? Measures it on the embedded base and fits the curve of `timestep_type: weighted`.

A LoRA is trained with uniform times on enough pictures that nothing is learned by heart; then, for each noise level,
the loss on held-out pictures of the concept with and without it. The difference is what training taught there. Divided
by its mean it is a curve of mean 1, to which `f + (1 - f) · Beta(a, b)` is fitted by least squares:
`python benchmarks/timestep_weights.py`.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import torch
from features import draw_pictures, write_pictures

from trainer_core.adapters.applied import applied
from trainer_core.config import DatasetConfig
from trainer_core.data.images import load_image, to_bucket
from trainer_core.data.scan import scan
from trainer_core.demo import plain_job
from trainer_core.embedded.demo_data import TRIGGER
from trainer_core.embedded.evaluate import Painter
from trainer_core.embedded.shapes import CONCEPT, random_scene
from trainer_core.families.conditioning import MAIN, Conditioning
from trainer_core.job import TrainingJob
from trainer_core.randomness import normal_like

LEVELS = 20
_STEPS = (150, 300)
_SEEDS = (1, 2, 3)
_NOISES = 3
_PICTURES = 256


def losses(lora: Path | None, folder: Path) -> torch.Tensor:
    """Mean squared error at each level (LEVELS,), over all pictures of a folder and some draws of noise."""
    painter = Painter(lora)
    base, items = painter.base, scan(DatasetConfig(folder=str(folder), resolutions=(64,)))
    pixels = torch.stack([to_bucket(load_image(item.path), (64, 64)) for item in items])
    clean = base.encode_pixels(pixels)[0][MAIN]
    captions = [item.captions[0].replace("[trigger]", TRIGGER) for item in items]
    given = base.collate(list(map(Conditioning, captions, base.encode_prompts(captions))))
    found = []
    with torch.no_grad(), applied(painter.denoiser, painter.deltas, 1.0) if painter.deltas else nullcontext():
        for level in range(LEVELS):
            t = torch.full((len(items),), (level + 0.5) / LEVELS)
            errors = []
            for k in range(_NOISES):
                noise = normal_like(clean.shape, "weights", level, k)
                noisy = base.schedule.add_noise(clean, noise, t)
                predicted = base.predict(painter.denoiser, {MAIN: noisy}, t, given)[MAIN]
                errors.append((predicted - (noise - clean)).square().mean())
            found.append(torch.stack(errors).mean())
    return torch.stack(found)


def fitted(curve: torch.Tensor) -> tuple[float, float, float]:
    """Floor, a and b of the nearest f + (1 - f) · Beta(a, b), on a grid that ends well inside what is sensible."""
    t = (torch.arange(LEVELS) + 0.5) / LEVELS
    best = (math.inf, 0.0, 1.0, 1.0)
    grid = [k / 4 for k in range(4, 41)]
    for floor, a, b in product([k / 20 for k in range(20)], grid, grid):
        constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        weights = floor + (1 - floor) * math.exp(constant) * t ** (a - 1) * (1 - t) ** (b - 1)
        best = min(best, (float((weights - curve).square().sum()), floor, a, b))
    return best[1:]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        draw_pictures(work)
        rng = random.Random(5)
        write_pictures(work / "many", [random_scene(rng, CONCEPT) for _ in range(_PICTURES)], "[trigger]")
        many = DatasetConfig(folder=str(work / "many"), resolutions=(64,), trigger=TRIGGER)
        plain = losses(None, work / "held_out")
        curves = []
        for seed in _SEEDS:
            job = plain_job(seed).model_copy(update={"datasets": (many,)})
            train = job.train.but(timestep_type="linear")
            for steps in _STEPS:
                own = job.model_copy(update={"train": train.but(steps=steps), "save": job.save.but(every=steps)})
                run = TrainingJob.new(work / "runs", own)
                run.run_here(lambda _: None)
                checkpoint = run.run.latest()
                assert checkpoint is not None
                gain = plain - losses(checkpoint.lora, work / "held_out")
                curves.append(gain / gain.mean())
                shown = [round(value, 3) for value in curves[-1].tolist()]
                print(json.dumps({"seed": seed, "steps": steps, "gain": shown, "mean": float(gain.mean())}), flush=True)
    mean = torch.stack(curves).mean(0)
    print("mean  ", [round(value, 3) for value in mean.tolist()])
    print("base  ", [round(value, 4) for value in plain.tolist()])
    print("fit   ", dict(zip(("floor", "a", "b"), fitted(mean), strict=True)))


if __name__ == "__main__":
    main()
