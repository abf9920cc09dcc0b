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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_core.api import RecoverySettings, TrainingJob, cache_of, make_recovery
from trainer_core.config import JobConfig, ModelConfig, SaveConfig
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

    @property
    def stem(self) -> str:
        """For names of files."""
        return self.name.replace(", ", "_").replace(" ", "_")


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


class Bench:
    """One base, many trainings."""

    def __init__(self, work: Path, kept: Path, pictures: int) -> None:
        self.work, self.kept = work, kept
        self.evaluation = Evaluation(TRIGGER, pictures)

    def model(self, setting: Setting) -> ModelConfig:
        """The base of a setting, whose recovery adapter is made once."""
        model = demo_job().model.but(quantization=setting.quantization, low_rank=setting.low_rank)
        if not setting.rank:
            return model
        job = demo_job().model_copy(update={"model": model})
        place = self.kept / f"{setting.quantization}_{setting.low_rank}_{setting.rank}"
        if not (made := sorted(place.glob("*.safetensors"))):
            settings = RecoverySettings(rank=setting.rank)
            path, found = make_recovery(job, settings, cache_of(self.work), place, lambda *_: None)
            told = {name: round(value, 4) for name, value in vars(found).items() if isinstance(value, float)}
            (place / "made.json").write_text(json.dumps(told))
            made = [path]
        return model.but(recovery_adapter=str(made[0]))

    def measure(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Trains once and judges."""
        job: JobConfig = demo_job(seed)
        job = job.model_copy(update={"model": self.model(setting), "save": SaveConfig(every=job.train.steps)})
        run = TrainingJob.new(self.work, job)
        run.run_here(lambda _: None)
        checkpoint = run.run.latest()
        assert checkpoint is not None
        scores = self.evaluation.of(checkpoint.lora)
        (self.kept / f"{setting.stem}_{seed}.safetensors").write_bytes(checkpoint.lora.read_bytes())
        numbers = {name: round(getattr(scores, name), 4) for name in NUMBERS}
        return {"setting": setting.name, "seed": seed, **numbers}


def distance(kept: Path, setting: Setting, seed: int) -> float | None:
    """‖v - v_full‖ / ‖v_full - v_base‖ of predictions on the full base, v_full being with the full base's LoRA."""
    full = kept / f"{SETTINGS[0].stem}_{seed}.safetensors"
    if not full.exists():
        return None
    own, aim, plain = (predictions(one) for one in (kept / f"{setting.stem}_{seed}.safetensors", full, None))
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


def table(lines: list[dict[str, Any]], kept: Path) -> str:
    """Mean and spread of each number over the seeds, a row for each setting."""
    rows = ["| base in training | seeds | activation | generalization | leak | distance |", "|---|---|---|---|---|---|"]
    for setting in SETTINGS:
        own = [line for line in lines if line["setting"] == setting.name]
        if own:
            apart = [distance(kept, setting, line["seed"]) for line in own]
            columns = [*([line[name] for line in own] for name in NUMBERS), [one for one in apart if one is not None]]
            cells = [_mean_and_spread(values) for values in columns]
            rows.append(f"| {setting.name} | {len(own)} | {' | '.join(cells)} |")
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
    parser.add_argument("--pictures", type=int, default=100, help="behind each number")
    parser.add_argument("--kept", type=Path, default=Path("recovery"), help="folder for adapters, LoRAs and results")
    args = parser.parse_args()
    out = args.kept / "recovery.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["setting"], line["seed"]) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.kept, args.pictures)
        for seed in range(1, args.seeds + 1):
            for setting in SETTINGS:
                asked = setting.name in args.settings if args.settings else setting in SETTINGS[:3]
                if asked and (setting.name, seed) not in done:
                    lines.append(bench.measure(setting, seed))
                    print(json.dumps(lines[-1]), flush=True)
                    with out.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines, args.kept))


if __name__ == "__main__":
    main()
