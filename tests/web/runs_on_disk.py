"""Runs as folders, for pages to show: no training is needed to look at one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from trainer_core.config import JobConfig, validated
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.run_lock import RunLock

FILES = {"lora.safetensors": b"l" * 3000, "state.safetensors": b"s" * 500}


def make_run(
    root: Path,
    name: str,
    *,
    state: str = "finished",
    steps: int = 40,
    lines: int = 40,
    prompts: tuple[str, ...] = ("a red zorble",),
    sampled: tuple[int, ...] = (0, 20, 40),
    saved: tuple[int, ...] = (20, 40),
    error: str | None = None,
) -> RunFolder:
    """A run with losses that fall from 1, a validation at each checkpoint, and grey previews that grow lighter."""
    settings: dict[str, Any] = {
        "name": name,
        "model": {"source": "embedded", "device": "cpu"},
        "datasets": [{"folder": "demo", "resolutions": [64], "trigger": "zorble"}],
        "train": {"steps": steps, "learning_rate": 1e-3},
        "sample": {"prompts": list(prompts)},
    }
    run = RunFolder.create(root, validated(JobConfig, settings))
    at = [round(steps * (k + 1) / lines) for k in range(lines)]
    text = "".join(json.dumps(metrics(step)) + "\n" for step in at)
    text += "".join(json.dumps({"step": step, "validation_loss": 0.5 + 1 / (step + 1)}) + "\n" for step in saved)
    (run.path / "metrics.jsonl").write_text(text, encoding="utf-8")
    for step in saved:
        run.save_checkpoint(step, FILES)
    for step in sampled:
        folder = run.sample_folder(step)
        folder.mkdir(parents=True)
        for index, prompt in enumerate(prompts):
            told = PngImagePlugin.PngInfo()
            told.add_text("prompt", prompt)
            grey = 40 + 200 * step // max(1, steps)
            Image.new("RGB", (64, 64), (grey, grey, 60 * index % 256)).save(folder / f"{index:02}.png", pnginfo=told)
    run.log("warning: a <b>bold</b> warning")
    run.write_status(state, steps if state == "finished" else steps // 2, steps, error)
    return run


def run_at_work(root: Path, name: str) -> tuple[RunFolder, RunLock]:
    """A run of 40 steps that this process works on: it has made 20 of them."""
    run = make_run(root, name, state="running", lines=40, sampled=(0, 20), saved=(20,))
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    (run.path / "metrics.jsonl").write_text("\n".join(text) + "\n", encoding="utf-8")
    lock = RunLock(run.path)
    lock.acquire()
    return run, lock


def go_on(run: RunFolder, first: int, last: int) -> None:
    """More steps, and samples and a checkpoint of the last."""
    for step in range(first, last + 1):
        run.append_metrics(metrics(step))
    shutil.copytree(run.sample_folder(20), run.sample_folder(last))
    run.save_checkpoint(last, FILES)


def metrics(step: int) -> dict[str, float]:
    """A line of metrics.jsonl."""
    return {"step": step, "loss": round(math.exp(-step / 50), 6), "lr": 1e-3, "seconds_per_step": 0.1}
