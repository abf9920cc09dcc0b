"""What tests of ComfyUI look up in a run's folder."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

from .server import ComfyServer

STEPS = 20
# slow enough to be cancelled on the way on a fast machine, quick enough to be finished on a slow one
SLOW = {"steps": STEPS, "batch_size": 4, "gradient_accumulation": 4, "save_every": 1000, "sample_every": 1000}
EXACT = {**SLOW, "options": {"deterministic": True}}


def run_of(server: ComfyServer, prompt: dict[str, Any]) -> Path:
    """The folder of the first run of a prompt's name."""
    return server.base / "output" / "lora_foundry" / prompt["train"]["inputs"]["name"]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def steps(run: Path) -> list[int]:
    """The steps in metrics.jsonl; a line that is being written does not count."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line)["step"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def finished(run: Path, count: int = STEPS) -> bool:
    """Whether a run has made each of its steps once."""
    return status(run)["state"] == "finished" and steps(run) == list(range(1, count + 1))


def begun(server: ComfyServer, prompt: dict[str, Any], count: int = 2) -> tuple[str, Path]:
    """Queues a prompt and waits until it has made some steps; gives its id and the run's folder."""
    run = run_of(server, prompt)
    done, prompt_id = len(steps(run)), server.queue(prompt)
    while len(steps(run)) < done + count:
        assert prompt_id not in server.get(f"/history/{prompt_id}"), server.log()[-3000:]
        time.sleep(0.05)
    return prompt_id, run


def weights(run: Path) -> tuple[dict[str, Any], bytes]:
    """The last checkpoint's LoRA without its metadata: where each tensor lies, and all tensors' bytes."""
    data = (sorted((run / "checkpoints").glob("step_*"))[-1] / "lora.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return {name: place for name, place in header.items() if name != "__metadata__"}, data[8 + length :]
