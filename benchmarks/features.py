"""What each training feature does to the four numbers, on the embedded base: `python benchmarks/features.py`.

Each recipe is trained with several seeds and judged on pictures; results are appended to a JSON-lines file as they
come, and what is there already is not done again. `--table` prints the file as the table of RESULTS.md. One training
and its judging take one to two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from recipes import RECIPES, Recipe

from trainer_core.config import DatasetConfig, JobConfig, SaveConfig, ValidationConfig, validated
from trainer_core.demo import plain_job
from trainer_core.embedded.demo_data import TRIGGER
from trainer_core.embedded.evaluate import Evaluation
from trainer_core.embedded.shapes import CONCEPT, Scene, draw, random_scene
from trainer_core.job import TrainingJob

NUMBERS = ("activation", "generalization", "leak", "validation_loss")
_HELD_OUT, _KNOWN = 24, 24
"""Pictures of the concept for validation, and of known shapes for regularization."""


def job_of(recipe: Recipe, seed: int, pictures: Path) -> JobConfig:
    """The plain job of the demo with a recipe's changes; validation pictures are the same for all."""
    plain = plain_job(seed)
    datasets: list[DatasetConfig] = [
        plain.datasets[0].but(**recipe.dataset),
        DatasetConfig(folder=str(pictures / "held_out"), role="validation", resolutions=(64,), trigger=TRIGGER),
    ]
    if recipe.plain_set:
        datasets.append(
            DatasetConfig(
                folder=str(pictures / "known"),
                role="regularization",
                resolutions=(64,),
                regularization_target="base" if recipe.plain_target == "base" else "images",
            )
        )
    return plain.model_copy(
        update={
            "adapter": plain.adapter.but(**recipe.adapter),
            "datasets": tuple(datasets),
            "train": plain.train.but(**recipe.train),
            "regularization": plain.regularization.but(**recipe.regularization),
            "validation": ValidationConfig(every=plain.train.steps),
            "save": SaveConfig(every=plain.train.steps),
        }
    )


def draw_pictures(folder: Path) -> None:
    """Held-out pictures of the concept in all colours, and pictures of known shapes, with their captions."""
    rng = random.Random(77)
    concept = [random_scene(rng, CONCEPT) for _ in range(_HELD_OUT)]
    known = []
    while len(known) < _KNOWN:
        scene = random_scene(rng)
        if not scene.held_out:
            known.append(scene)
    write_pictures(folder / "held_out", concept, "[trigger]")
    write_pictures(folder / "known", known, None)


def write_pictures(folder: Path, scenes: list[Scene], noun: str | None) -> None:
    """Draws scenes with their captions; `noun` stands in for the shape's name."""
    folder.mkdir(parents=True)
    for k, scene in enumerate(scenes):
        draw(scene).save(folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(scene.caption(noun), encoding="utf-8")


def measure(name: str, config: JobConfig, evaluation: Evaluation, work: Path) -> dict[str, Any]:
    """Trains a recipe once and judges the result."""
    started = time.monotonic()
    job = TrainingJob.new(work / "runs", validated(JobConfig, config.model_dump(mode="json")))
    job.run_here(lambda _: None)
    trained = time.monotonic() - started
    checkpoint = job.run.latest()
    assert checkpoint is not None
    scores = evaluation.of(checkpoint.lora)
    losses = [line["validation_loss"] for line in job.run.metrics() if "validation_loss" in line]
    return {
        "recipe": name,
        "seed": config.train.seed,
        "pictures": evaluation.count,
        **{name: round(getattr(scores, name), 4) for name in ("activation", "generalization", "leak", "plain")},
        "validation_loss": round(losses[-1], 5),
        "validation_loss_of_base": round(losses[0], 5),
        "seconds": round(trained, 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Mean and spread (standard deviation over seeds) of each number, a row for each recipe."""
    rows = [
        "| recipe | seeds | activation | generalization | leak | held-out loss | what it is |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
        own = [line for line in lines if line["recipe"] == recipe.name]
        if own:
            cells = [_mean_and_spread([line[name] for line in own]) for name in NUMBERS]
            rows.append(f"| {recipe.name} | {len(own)} | {' | '.join(cells)} | {recipe.why} |")
    return "\n".join(rows)


def _mean_and_spread(values: list[float]) -> str:
    digits = 4 if max(values) < 0.1 and min(values) > 0.001 else 3
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=100, help="behind each number")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "features.jsonl")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, measure nothing")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if not args.table:
        done = {(line["recipe"], line["seed"]) for line in lines}
        evaluation = Evaluation(TRIGGER, args.pictures)
        with tempfile.TemporaryDirectory() as folder:
            draw_pictures(Path(folder))
            for seed in range(1, args.seeds + 1):
                for recipe in RECIPES:
                    if (args.recipes and recipe.name not in args.recipes) or (recipe.name, seed) in done:
                        continue
                    job = job_of(recipe, seed, Path(folder))
                    lines.append(measure(recipe.name, job, evaluation, Path(folder)))
                    print(json.dumps(lines[-1]), flush=True)
                    with args.out.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
