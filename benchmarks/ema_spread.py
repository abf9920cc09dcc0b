"""Does a moving average of the weights lower the luck of a run? `python benchmarks/ema_spread.py`.

Small batches and a high constant learning rate leave the last weights noisy. The same trainings (the plain recipe at
batch 4 and twice the rate, several seeds) are judged with their raw weights and with their average, at the last step;
what counts is the spread (standard deviation) over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from features import draw_pictures, job_of, measure
from recipes import Recipe

from trainer_core.embedded.demo_data import TRIGGER
from trainer_core.embedded.evaluate import Evaluation

_NOISY = {"batch_size": 4, "learning_rate": 2e-3, "steps": 300, "ema_decay": 0.98}
NUMBERS = ("activation", "generalization", "leak", "validation_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=80)
    args = parser.parse_args()
    evaluation = Evaluation(TRIGGER, args.pictures)
    found: dict[str, list[dict[str, float]]] = {"raw": [], "ema": []}
    recipe = Recipe("noisy", "", train=_NOISY)
    with tempfile.TemporaryDirectory() as name:
        draw_pictures(Path(name))
        for seed in range(1, args.seeds + 1):
            for weights in found:  # the same training twice, byte for byte; only what is saved and measured differs
                job = job_of(recipe, seed, Path(name))
                job = job.model_copy(update={"save": job.save.but(weights=weights)})
                found[weights].append(measure(recipe.name, job, evaluation, Path(name)))
                print(json.dumps({"weights": weights, **found[weights][-1]}), flush=True)
    print("| weights | " + " | ".join(NUMBERS) + " |")
    for weights, rows in found.items():
        values = [[row[key] for row in rows] for key in NUMBERS]
        cells = [f"{statistics.mean(one):.3f} ± {statistics.stdev(one):.4f}" for one in values]
        print(f"| {weights} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
