"""What a recovery adapter gives back, on the embedded base: `python benchmarks/recovery.py`.

The demo's job is trained on the base as each setting holds it, with several seeds, and its LoRA is judged on the full
base, where it is used. Beside the demo's numbers: how far predictions with that LoRA are from those with the LoRA that
the same seed gives on the full base, in terms of what that LoRA changes. Results are appended to a JSON-lines file as
they come, and what is there already is not done again. A training and its judging take two to three minutes on a core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_core.api import RecoverySettings, TrainingJob, cache_of, make_recovery
from trainer_core.config import ModelConfig, SaveConfig
from trainer_core.data.images import at_own_size
from trainer_core.demo import demo_job
from trainer_core.embedded.demo_data import TRIGGER
from trainer_core.embedded.evaluate import Evaluation, Painter, plain_prompts, trigger_prompts
from trainer_core.embedded.shapes import draw

if TYPE_CHECKING:
    from torch import Tensor

NUMBERS = ("activation", "generalization", "leak")


@dataclass(frozen=True)
class Setting:
    """How the base is held while the LoRA is trained."""

    name: str
    quantization: str = "none"
    low_rank: int = 0
    rank: int = 0
    """Of the recovery adapter; 0: none."""


SETTINGS = (
    Setting("full"),
    Setting("3bit", "3bit"),
    Setting("3bit, recovered", "3bit", rank=16),
    Setting("6bit", "6bit"),
    Setting("3bit, low rank 16", "3bit", low_rank=16),
    Setting("3bit, low rank 16, recovered", "3bit", low_rank=16, rank=16),
    Setting("3bit, recovered with rank 4", "3bit", rank=4),
    Setting("2bit", "2bit"),
    Setting("2bit, recovered", "2bit", rank=16),
)


def model_of(setting: Setting, kept: Path, work: Path) -> ModelConfig:
    """The base of a setting, whose recovery adapter is made once."""
    model = demo_job().model.but(quantization=setting.quantization, low_rank=setting.low_rank)
    if not setting.rank:
        return model
    place = kept / f"{setting.quantization}_{setting.low_rank}_{setting.rank}"
    if not (made := sorted(place.glob("*.safetensors"))):
        job = demo_job().model_copy(update={"model": model})
        path, found = make_recovery(job, RecoverySettings(setting.rank), cache_of(work), place, lambda *_: None)
        told = {name: round(value, 4) for name, value in vars(found).items() if isinstance(value, float)}
        (place / "made.json").write_text(json.dumps(told))
        made = [path]
    return model.but(recovery_adapter=str(made[0]))


def train(setting: Setting, seed: int, steps: int, kept: Path, work: Path) -> None:
    """Trains the demo's job once and keeps its LoRA."""
    job = demo_job(seed)
    train = job.train.but(steps=steps)
    update = {"model": model_of(setting, kept, work), "train": train, "save": SaveConfig(every=steps)}
    run = TrainingJob.new(work, job.model_copy(update=update), queue_up=False)
    run.run_here(lambda _: None)
    checkpoint = run.run.latest()
    assert checkpoint is not None
    lora_of(setting, seed, kept).write_bytes(checkpoint.lora.read_bytes())


def lora_of(setting: Setting, seed: int, kept: Path) -> Path:
    """Where a LoRA is kept."""
    return kept / f"{setting.name.replace(', ', '_').replace(' ', '_')}_{seed}.safetensors"


def distance(kept: Path, setting: Setting, seed: int) -> float | None:
    """‖v - v_full‖ / ‖v_full - v_base‖ of predictions on the full base, v_full being with the full base's LoRA."""
    lora, full = (lora_of(one, seed, kept) for one in (setting, SETTINGS[0]))
    if not lora.exists() or not full.exists():
        return None
    own, aim, plain = (predictions(one) for one in (lora, full, None))
    return float((own - aim).norm() / (aim - plain).norm())


def predictions(lora: Path | None) -> Tensor:
    """Of the full base, over noise levels, for prompts with and without the trigger."""
    import torch

    from trainer_core.families.conditioning import MAIN, Conditioning

    painter = Painter(lora)
    base = painter.base
    prompts = [*trigger_prompts(TRIGGER, 32), *plain_prompts(32)]
    texts = base.encode_prompts([prompt.text for prompt in prompts])
    given = base.collate([Conditioning("", text) for text in texts])
    shown = torch.stack([at_own_size(draw(prompt.scene)) for prompt in prompts])
    clean = base.encode_pixels(shown)[0][MAIN]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))
    times = (torch.arange(64) * 37 % 64 + 0.5) / 64
    noisy = base.schedule.add_noise(clean, noise, times)
    with torch.no_grad(), painter.drawing():
        return base.predict(painter.denoiser, {MAIN: noisy}, times, given)[MAIN]


def table(lines: list[dict[str, Any]], seeds: int, kept: Path) -> str:
    """Mean and spread of each number over the seeds, a row for each setting."""
    rows = ["| base in training | activation | generalization | leak | distance |", "|---|---|---|---|---|"]
    for setting in SETTINGS:
        own = [line for line in lines if line["setting"] == setting.name]
        apart = [distance(kept, setting, seed) for seed in range(1, seeds + 1)]
        columns = [*([line[name] for line in own] for name in NUMBERS), [one for one in apart if one is not None]]
        if any(columns):
            rows.append(f"| {setting.name} | {' | '.join(map(_mean_and_spread, columns))} |")
    return "\n".join(rows)


def _mean_and_spread(values: list[float]) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="default: the first three")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--pictures", type=int, default=100, help="behind each number; 0: none are drawn")
    parser.add_argument("--kept", type=Path, default=Path("recovery"), help="folder for adapters, LoRAs and results")
    args = parser.parse_args()
    out = args.kept / "recovery.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["setting"], line["seed"]) for line in lines}
    asked = [one for one in SETTINGS if (one.name in args.settings if args.settings else one in SETTINGS[:3])]
    evaluation = Evaluation(TRIGGER, args.pictures) if args.pictures else None
    with tempfile.TemporaryDirectory() as folder:
        for seed, setting in product(range(1, args.seeds + 1), asked):
            lora = lora_of(setting, seed, args.kept)
            if not lora.exists():
                train(setting, seed, args.steps, args.kept, Path(folder))
                print(setting.name, seed, distance(args.kept, setting, seed), flush=True)
            if evaluation and (setting.name, seed) not in done:
                scores = evaluation.of(lora)
                numbers = {name: round(getattr(scores, name), 4) for name in NUMBERS}
                lines.append({"setting": setting.name, "seed": seed, **numbers})
                print(json.dumps(lines[-1]), flush=True)
                with out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines, args.seeds, args.kept))


if __name__ == "__main__":
    main()
