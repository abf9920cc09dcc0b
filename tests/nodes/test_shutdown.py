"""How a process ends in which a run trains: by each way, and in each phase, the run saves and stops first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROCESS = """
import importlib, importlib.util, os, sys, threading, time, types
from pathlib import Path
root, runs, data, ways = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
spec = importlib.util.spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[str(root)])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
nodes = types.ModuleType("pack.nodes")
nodes.__path__ = [str(root / "nodes")]
sys.modules["pack.nodes"] = nodes
shutdown = importlib.import_module("pack.nodes.shutdown")
config = importlib.import_module("pack.trainer_core.config")
job = importlib.import_module("pack.trainer_core.job")
training = job.TrainingJob.new(runs, config.JobConfig(
    name="run",
    model={"source": "embedded", "device": "cpu"},
    datasets=[{"folder": data, "resolutions": (64,), "trigger": "zorble"}],
    train={"steps": 100000, "gradient_checkpointing": False},
    save={"every": 100000},
    sample={"before_training": ways == "previews", "every": 100000, "prompts": ["a"], "steps": 1000},
))
shutdown.SHUTDOWN.install()

def prompt():
    with shutdown.SHUTDOWN.held_up_by(training):
        training.start()
        while training.alive:
            for event in training.events():
                print(type(event).__name__, flush=True)
            time.sleep(0.02)

threading.Thread(target=prompt, daemon=True).start()
if ways == "exec":
    while not any(path.read_text().count("\\n") >= 2 for path in runs.glob("run/metrics.jsonl")):
        time.sleep(0.02)
    os.execv(sys.executable, [sys.executable, "-c", "print('another process')"])
try:
    while True:
        time.sleep(1)
except KeyboardInterrupt:
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(
    ("way", "number", "code"),
    [
        ("training", signal.SIGINT, 0),
        ("training", "SIGHUP", None),
        ("previews", signal.SIGTERM, -signal.SIGTERM),
        ("preparing", signal.SIGINT, 0),
        ("exec", None, 0),
    ],
)
def test_the_run_is_saved_and_stopped(tmp_path: Path, way: str, number: int | str | None, code: int | None) -> None:
    number = getattr(signal, number) if isinstance(number, str) else number
    command = [sys.executable, "-c", PROCESS, str(ROOT), str(tmp_path / "runs")]
    command += [str(ROOT / "trainer_core" / "embedded" / "demo_dataset"), way]
    environment = {**os.environ, "LORA_FOUNDRY_STATE": str(tmp_path / "state"), "HF_HUB_OFFLINE": "1"}
    run = tmp_path / "runs" / "run"
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if number is not None:
            while not _begun(run, way):
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == (-number if code is None else code)
    assert b"Traceback" not in errors, errors
    assert b"terminate" not in errors
    now = json.loads((run / "run.json").read_text())
    assert (now["state"], now["error"]) == ("stopped", None)
    made = [json.loads(line)["step"] for line in _text(run / "metrics.jsonl").splitlines()]
    assert made == list(range(1, now["step"] + 1))
    assert [path.name for path in (run / "checkpoints").glob("*")] == ([f"step_{len(made):08d}"] if made else [])
    assert bool(made) == (way in ("training", "exec"))


def _begun(run: Path, way: str) -> bool:
    """Whether a run is in the phase that it is to be stopped in."""
    if way == "training":
        return _text(run / "metrics.jsonl").count("\n") >= 2
    return ("loading the base" if way == "previews" else "scanning the data") in _text(run / "log.txt")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""
