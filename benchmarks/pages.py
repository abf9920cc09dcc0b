"""What pages ask of the server, with 200 runs of 10,000 metric lines and 1,000 samples each.

    python benchmarks/pages.py DIR            # makes the runs in DIR (once), and measures
    python benchmarks/pages.py DIR --make     # only makes them: for a server whose output/lora_foundry it is
    python benchmarks/pages.py DIR --pictures # the same of a data set, DIR/ten_thousand: DIR is a server's input folder

Files that would be alike are one file with many names (hard links), so that all of it takes some 50 MB; of 10,000
pictures of a megapixel, 100 are different, and 9,000 have captions.
CPU seconds of this process, the median of five; `cold` is the first look after a start.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image, PngImagePlugin

from trainer_core.api import (
    Library,
    Places,
    RunFolder,
    RunList,
    checkpoint_facts,
    log_of,
    read_settings,
    run_called,
    samples_of,
    series,
    told_in_log,
)
from trainer_core.config import JobConfig, validated

RUNS, LINES, STEPS_WITH_SAMPLES, PROMPTS, CHECKPOINTS = 200, 10_000, 50, 20, 4
DATA_SET, PICTURES, CAPTIONED, DIFFERENT = "ten_thousand", 10_000, 9_000, 100
_LORA_BYTES = 8_000_000


def make(root: Path, runs: int = RUNS) -> None:
    """Runs that are finished, stopped, failed and paused, in turn; what is there already stays."""
    root.mkdir(parents=True, exist_ok=True)
    once = root / ".once"
    once.mkdir(exist_ok=True)
    pictures = [_picture(once / f"{k:02d}.png", k) for k in range(PROMPTS)]
    metrics, lora = _metrics(once / "metrics.jsonl"), _sparse(once / "lora.safetensors")
    digest = hashlib.sha256(bytes(_LORA_BYTES)).hexdigest()
    for number in range(runs):
        path = root / f"run_{number:03d}"
        if path.exists():
            continue
        path.mkdir()
        run = RunFolder(path)
        run.write_job(_job(path.name))
        (path / "log.txt").write_text("2026-11-29 12:00:00 queued at step 0 of 10000\n" * 100, encoding="utf-8")
        os.link(metrics, path / "metrics.jsonl")
        for k in range(STEPS_WITH_SAMPLES):
            folder = path / "samples" / f"step_{k * LINES // STEPS_WITH_SAMPLES:08d}"
            folder.mkdir(parents=True)
            for picture in pictures:
                os.link(picture, folder / picture.name)
        for k in range(CHECKPOINTS):
            folder = path / "checkpoints" / f"step_{(k + 1) * LINES // CHECKPOINTS:08d}"
            folder.mkdir(parents=True)
            names = ("lora.safetensors", "state.safetensors")
            for name in names:
                os.link(lora, folder / name)
            files = {name: {"size": _LORA_BYTES, "sha256": digest} for name in names}
            text = json.dumps({"step": int(folder.name[5:]), "files": files})
            (folder / "manifest.json").write_text(text, encoding="utf-8")
        state = ("finished", "stopped", "failed", "paused")[number % 4]
        run.write_status(state, LINES, LINES, "the loss is not finite" if state == "failed" else None)


def _job(name: str) -> JobConfig:
    prompts = [f"a [trigger] in a field, number {k}" for k in range(PROMPTS)]
    job = {"name": name, "trigger": "zorble", "datasets": [{"folder": "/nowhere/pictures"}]}
    return validated(JobConfig, {**job, "train": {"steps": LINES}, "sample": {"prompts": prompts}})


def _metrics(path: Path) -> Path:
    """A falling loss with noise and validation every 500 steps."""
    chance, lines = random.Random(1), []
    for step in range(1, LINES + 1):
        loss = 0.1 + 0.4 * math.exp(-step / 2000) + chance.gauss(0, 0.05)
        line = {"step": step, "loss": loss, "lr": 1e-4, "grad_norm": abs(chance.gauss(0.3, 0.1))}
        lines.append(json.dumps({**line, "seconds_per_step": 0.412, "peak_memory": 11_234_567_890}))
        if step % 500 == 0:
            lines.append(json.dumps({"step": step, "validation_loss": loss + 0.02}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _picture(path: Path, number: int) -> Path:
    facts = PngImagePlugin.PngInfo()
    facts.add_text("prompt", f"a zorble in a field, number {number}")
    buffer = io.BytesIO()
    noise = Image.effect_noise((512, 512), 40).convert("RGB")
    noise.save(buffer, "PNG", pnginfo=facts)
    path.write_bytes(buffer.getvalue())
    return path


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(_LORA_BYTES)
    return path


def measure(root: Path) -> None:
    """Prints a line for each request."""
    run = run_called("run_100", root)

    def all_runs() -> Any:
        return [asdict(one) for one in RunList(root).look().values()]

    warm = RunList(root)
    warm.look()

    def details() -> Any:
        found = {
            "checkpoints": [asdict(one) for one in checkpoint_facts(run, run.metrics())],
            "samples": [[step, [asdict(one) for one in items]] for step, items in samples_of(run)],
        }
        return [found, read_settings(run.path), told_in_log(run)]

    _tell("GET runs, cold", all_runs)
    _tell("GET runs, warm", lambda: [asdict(one) for one in warm.look().values()])
    _tell("a look of the watcher", lambda: len(warm.look()))
    _tell("GET runs/{run}, cold", details, times=1)
    _tell("GET runs/{run}, warm", details)
    _tell("GET metrics", lambda: series(run.metrics()))
    _tell("GET metrics?after=9900", lambda: series(run.metrics(), 9900))
    _tell("GET log", lambda: log_of(run))


# data sets


def make_pictures(folder: Path) -> None:
    """A data set, once."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        path = folder / f"{number:05d}.jpg"
        if number < DIFFERENT:
            noise = Image.effect_noise((1024, 1024), 20 + number).convert("RGB")
            noise.save(path, "JPEG", quality=60)
        else:
            os.link(folder / f"{number % DIFFERENT:05d}.jpg", path)
        if number < CAPTIONED:
            tags = f"tag{number % 7}, tag{number % 11}"
            path.with_suffix(".txt").write_text(f"a [trigger] number {number}, {tags}, soft light", encoding="utf-8")


def measure_pictures(root: Path) -> None:
    """Prints a line for each look at a data set."""
    places = Places(root, (), root / "no demo", root / "no runs", root / "no drafts")
    library = Library(lambda: places, lambda _: True)
    identity = next(one["id"] for one in library.datasets() if one["name"] == DATA_SET)
    _tell("GET datasets", library.datasets)
    opened = library.open(identity)
    _tell("open, cold", lambda: len(Library(lambda: places, lambda _: True).open(identity).keys), times=1)
    _tell("open, warm", lambda: len(library.open(identity).keys))
    items = opened.ordered(missing_first=True)
    _tell("order, uncaptioned first", lambda: len(opened.ordered(missing_first=True)))
    _tell("200 rows, cold", lambda: [opened.row(item) for item in items[:200]], times=1)
    _tell("all rows, cold", lambda: [opened.row(item) for item in items], times=1)
    _tell("all rows, warm", lambda: [opened.row(item) for item in items], times=1)
    _tell("GET datasets/{id}", opened.summary, times=1)


def _tell(what: str, answer: Callable[[], Any], times: int = 5) -> None:
    took = []
    for _ in range(times):
        begun = time.process_time()
        text = json.dumps(answer())
        took.append(time.process_time() - begun)
    print(f"{what:26} {statistics.median(took) * 1000:8.1f} ms  {len(text):9,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--make", action="store_true", help="do not measure")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--pictures", action="store_true", help="a data set, and not runs")
    args = parser.parse_args()
    if args.pictures:
        make_pictures(args.root / DATA_SET)
        if not args.make:
            measure_pictures(args.root)
        return
    make(args.root, args.runs)
    if not args.make:
        measure(args.root)


if __name__ == "__main__":
    main()
