"""High-noise against low-noise training: what does each change? `python benchmarks/noise_bias.py`.

High noise is where a picture's layout is decided, low noise where its surface is. Two things are taught, each with the
biases `high_noise`, `balanced` and `low_noise` on uniform times:

form      the demo's new shape. `activation`: share of trigger prompts that show it. `layout kept`: overlap (area of
          both over area of either) of the figure with that in the base's own picture of the same seed; 1 is the
          base's layout.
surface   known shapes under their own captions, in a darker shade: `shade`: how far the figures' brightness went from
          the base's (0) to the data's (1).

Besides, for both, by how much training lowered the loss on held-out pictures at low, middle and high noise.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from timestep_weights import losses
from torch import Tensor

from trainer_core.config import DatasetConfig, JobConfig, SaveConfig
from trainer_core.demo import plain_job
from trainer_core.embedded.demo_data import TRIGGER
from trainer_core.embedded.evaluate import Painter, Prompt, plain_prompts, trigger_prompts, verdicts
from trainer_core.embedded.shapes import COLOURS, CONCEPT, Scene, draw, random_scene
from trainer_core.job import TrainingJob

BIASES = ("high_noise", "balanced", "low_noise")
_SHADE = 0.55
_PICTURES, _HELD_OUT = 256, 24
_BACKGROUNDS = {name: torch.tensor(rgb) / 127.5 - 1 for name, rgb in COLOURS.items()}


def figure(pictures: Tensor, prompts: list[Prompt]) -> Tensor:
    """Where each picture (N, 3, H, W) differs from its prompt's background: (N, H, W), bool."""
    backgrounds = torch.stack([_BACKGROUNDS[prompt.scene.background] for prompt in prompts])
    return (pictures - backgrounds[:, :, None, None]).abs().sum(1) > 0.5


def overlap(one: Tensor, other: Tensor) -> float:
    """Mean intersection over union of masks (N, H, W)."""
    union = (one | other).flatten(1).sum(1).clamp_min(1)
    return float(((one & other).flatten(1).sum(1) / union).mean())


def brightness(pictures: Tensor, prompts: list[Prompt]) -> float:
    """Mean brightness of the figures, 0 to 1."""
    where = figure(pictures, prompts)
    return float((((pictures.mean(1) + 1) / 2) * where).sum() / where.sum().clamp_min(1))


def shaded(scene: Scene) -> Image.Image:
    """A picture whose figure alone is darker."""
    plain, ground = draw(scene), draw(Scene(scene.shape, scene.background, scene.background))
    differs = np.abs(np.asarray(plain, int) - np.asarray(ground, int)).sum(-1) > 30
    dark = ImageEnhance.Brightness(plain).enhance(_SHADE)
    return Image.composite(dark, plain, Image.fromarray(differs.astype(np.uint8) * 255))


def draw_sets(work: Path) -> None:
    """Pictures for training, enough of them that nothing is learned by heart, and held-out ones, for both tasks."""
    rng = random.Random(91)
    bright = [name for name in COLOURS if name != "black"]
    for count, suffix in ((_PICTURES, ""), (_HELD_OUT, "_held_out")):
        forms = [random_scene(rng, CONCEPT) for _ in range(count)]
        surfaces = [random_scene(rng, colour=rng.choice(bright)) for _ in range(count)]
        _write(work / f"form{suffix}", [(draw(scene), scene.caption("[trigger]")) for scene in forms])
        _write(work / f"surface{suffix}", [(shaded(scene), scene.caption()) for scene in surfaces])


def _write(folder: Path, pictures: list[tuple[Image.Image, str]]) -> None:
    folder.mkdir()
    for k, (picture, caption) in enumerate(pictures):
        picture.save(folder / f"{k:03d}.png")
        (folder / f"{k:03d}.txt").write_text(caption, encoding="utf-8")


def job_of(task: str, bias: str, seed: int, steps: int, work: Path) -> JobConfig:
    plain = plain_job(seed)
    trigger = TRIGGER if task == "form" else None
    datasets = (DatasetConfig(folder=str(work / task), resolutions=(64,), trigger=trigger),)
    train = plain.train.but(timestep_type="linear", timestep_bias=bias, steps=steps)
    return plain.model_copy(update={"datasets": datasets, "train": train, "save": SaveConfig(every=steps)})


def thirds(gain: Tensor) -> dict[str, float]:
    """A curve over noise levels as the means of its thirds."""
    parts = [gain[: len(gain) // 3], gain[len(gain) // 3 : -(len(gain) // 3)], gain[-(len(gain) // 3) :]]
    return {
        f"loss lowered at {n} noise": float(p.mean()) for n, p in zip(("low", "middle", "high"), parts, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=60)
    args = parser.parse_args()
    form = trigger_prompts(TRIGGER, args.pictures)
    surface = [prompt for prompt in plain_prompts(2 * args.pictures) if prompt.scene.colour != "black"][: args.pictures]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        draw_sets(work)
        base = Painter()
        base_form, base_surface = base.paint(form), base.paint(surface)
        before = {task: losses(None, work / f"{task}_held_out") for task in ("form", "surface")}
        start = brightness(base_surface, surface)
        for seed in range(1, args.seeds + 1):
            for task in ("form", "surface"):
                for bias in BIASES:
                    job = TrainingJob.new(work / "runs", job_of(task, bias, seed, args.steps, work))
                    job.run_here(lambda _: None)
                    checkpoint = job.run.latest()
                    assert checkpoint is not None
                    painter = Painter(checkpoint.lora)
                    numbers = thirds(before[task] - losses(checkpoint.lora, work / f"{task}_held_out"))
                    if task == "form":
                        pictures = painter.paint(form)
                        numbers["activation"] = sum(v.shape == CONCEPT for v in verdicts(pictures)) / len(form)
                        numbers["layout kept"] = overlap(figure(pictures, form), figure(base_form, form))
                    else:
                        now = brightness(painter.paint(surface), surface)
                        numbers["shade"] = (start - now) / (start * (1 - _SHADE))
                    found.setdefault((task, bias), []).append(numbers)
                    print(json.dumps({"task": task, "bias": bias, "seed": seed, **numbers}), flush=True)
    for (task, bias), rows in found.items():
        cells = [
            f"{key} {statistics.mean(row[key] for row in rows):.3f} ± {statistics.stdev(row[key] for row in rows):.3f}"
            for key in rows[0]
        ]
        print(f"{task:8} {bias:11} {'; '.join(cells)}")


if __name__ == "__main__":
    main()
