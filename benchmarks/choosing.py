"""Whether the checkpoint that is chosen is the better one by the judge: `python benchmarks/choosing.py`.

The demo's recipe without preservation, at half the rate, so that checkpoints go from too little training to too much,
with the judge's best between them. Each is judged on pictures, and measured as `lora-foundry choose` does, which knows
nothing of the judge. Runs and verdicts are kept in `--out`, and what is there is not done again. A seed takes some
seven minutes of CPU, nearly all of it for the judge.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from trainer_core.api import choose_checkpoint
from trainer_core.config import JobConfig, SampleConfig, SaveConfig, ValidationConfig
from trainer_core.demo import plain_job
from trainer_core.embedded.demo_data import TRIGGER
from trainer_core.embedded.evaluate import Evaluation
from trainer_core.job import TrainingJob
from trainer_core.runs.run_folder import RunFolder

STEPS, EVERY, RATE = 200, 20, 5e-4
PROMPTS = (
    "a red [trigger] on a black background",
    "a white [trigger] on a purple background",
    "a green [trigger] on a yellow background",
    "a purple [trigger] on a blue background",
    "a red circle on a black background",
    "a green star on a purple background",
    "a yellow square on a blue background",
    "a white ring on a green background",
)
"""What a user would look at: half with the trigger, half without."""
MEASURES = ("held_out", "likeness", "variety", "leak")
JUDGED = ("activation", "generalization", "leak")


def job_of(seed: int) -> JobConfig:
    """With a quarter of the pictures held out."""
    plain = plain_job(seed)
    changed = {
        "name": f"choosing_{seed}",
        "train": plain.train.but(steps=STEPS, learning_rate=RATE),
        "save": SaveConfig(every=EVERY, keep=STEPS // EVERY),
        "validation": ValidationConfig(every=EVERY, share=0.25),
        "sample": SampleConfig(prompts=PROMPTS, every=EVERY),
    }
    return plain.model_copy(update=changed)


def run_of(seed: int, runs: Path) -> RunFolder:
    """The trained run of a seed."""
    job = job_of(seed)
    if (runs / job.name).is_dir():
        return RunFolder.open(runs / job.name)
    training = TrainingJob.new(runs, job, queue_up=False)
    training.run_here(lambda _: None)
    return training.run


def judged(run: RunFolder, pictures: int, evaluation: list[Evaluation]) -> dict[int, dict[str, float]]:
    """What the judge says of each checkpoint."""
    kept = run.path.with_suffix(".json")
    known: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for checkpoint in run.checkpoints():
        place = f"{checkpoint.step} {pictures}"
        if place not in known:
            if not evaluation:
                evaluation.append(Evaluation(TRIGGER, pictures))
            scores = evaluation[0].of(checkpoint.lora)
            known[place] = {name: getattr(scores, name) for name in JUDGED}
            kept.write_text(json.dumps(known, indent=1))
            print(run.name, place, known[place], flush=True)
    return {one.step: known[f"{one.step} {pictures}"] for one in run.checkpoints()}


def ranks(values: list[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of theirs."""
    return [sum(other < one for other in values) + (sum(other == one for other in values) + 1) / 2 for one in values]


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation; 0 where one of them never changes."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return statistics.correlation(ranks(first), ranks(second))


def worth(scores: dict[str, float]) -> float:
    """One number for the judge's three: what was learned, less what was lost."""
    return (scores["activation"] + scores["generalization"]) / 2 - scores["leak"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pictures", type=int, default=80, help="behind each of the judge's numbers")
    parser.add_argument("--out", type=Path, default=Path("choosing_runs"))
    args = parser.parse_args()
    evaluation: list[Evaluation] = []
    runs = [run_of(seed, args.out) for seed in args.seeds]
    verdicts = [judged(run, args.pictures, evaluation) for run in runs]
    correlations: dict[tuple[str, str], list[float]] = {}
    for run, scores in zip(runs, verdicts, strict=True):
        started = time.process_time()
        choice = choose_checkpoint(run, embedding="statistics")
        spent = time.process_time() - started
        rows: list[tuple[Any, dict[str, float]]] = [(one, scores[one.step]) for one in choice.checkpoints]
        print(
            f"\n{run.name}: best {choice.best}, alarm from {choice.alarm and choice.alarm.step}, {spent:.0f} s of CPU"
        )
        print("\n".join(choice.reasons))
        print(
            "| step | train loss | held-out | likeness | variety | leak | activation | generalization | leak | worth |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for one, told in rows:
            cells = [one.train_loss, *(getattr(one, name) for name in MEASURES), *told.values(), worth(told)]
            mark = "**" if one.step == choice.best else ""
            print(f"| {mark}{one.step}{mark} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
        for measure in MEASURES:
            for number in (*JUDGED, "worth"):
                values = [worth(told) if number == "worth" else told[number] for _, told in rows]
                pair = spearman([getattr(one, measure) for one, _ in rows], values)
                correlations.setdefault((measure, number), []).append(pair)
    print("\nSpearman's rank correlation over a run's checkpoints, for each seed")
    print(f"| measure | {' | '.join(f'judge: {name}' for name in (*JUDGED, 'worth'))} |\n|---|---|---|---|---|")
    for measure in MEASURES:
        cells = [" ".join(f"{one:+.2f}" for one in correlations[measure, name]) for name in (*JUDGED, "worth")]
        print(f"| {measure} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
