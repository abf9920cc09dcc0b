"""Kills a training with SIGKILL at random moments, many of them inside a save, and lets it go on each time.

    python benchmarks/kill_nine.py [--rounds 100] [--seed 1] [--json FILE] [--folder DIR]

After each kill the run folder must hold an intact checkpoint that is at most one save interval older than the last step
that the killed process reported. A run is killed again and again until it finishes; its LoRA and its metrics must then
be those of a run that nobody killed. The process that is killed is a fork of this one, which has the libraries loaded:
that saves their start-up, and what is killed is a whole process all the same. Needs os.fork (Linux, macOS).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

# threads of the parent are not in its forks: there must be none
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")

# what a run loads, loaded once before the first fork
from diffusers import AutoencoderKL, FluxTransformer2DModel  # noqa: F401
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel  # noqa: F401

from trainer_core.config import JobConfig, validated
from trainer_core.job import TrainingJob
from trainer_core.runs.events import CheckpointSaved, Event, Phase, SampleReady, StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.training import session  # noqa: F401

STEPS, SAVE_EVERY = 24, 2
MOMENTS = {"preparing": 2, "training": 3, "saving": 4, "drawing": 1}
"""What the killer waits for, and how often it chooses it."""


def job(folder: Path) -> JobConfig:
    """Small, with everything that has a state: EMA, warm-up, dropout, two weighted sets, accumulation, previews."""
    sets = [{"folder": str(folder / name), "resolutions": [64], "trigger": "zorble"} for name in ("one", "two")]
    sets[0] |= {"caption_dropout": 0.3}
    sets[1] |= {"weight": 0.5, "flip_x": True}
    train = {"steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 6, "lr_scheduler": "cosine", "deterministic": True}
    train |= {"gradient_accumulation": 3, "ema_decay": 0.9, "gradient_checkpointing": False}
    return validated(
        JobConfig,
        {
            "name": "killed",
            "model": {"source": "embedded", "device": "cpu"},
            "adapter": {"rank": 4, "dropout": 0.1},
            "datasets": sets,
            "train": train,
            "save": {"every": SAVE_EVERY, "keep": 2},
            "sample": {"prompts": ["a [trigger]"], "every": 6, "steps": 2, "before_training": True},
        },
    )


def pictures(folder: Path) -> None:
    """Two sets of three pictures."""
    from PIL import Image

    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for k in range(3):
            colour = tuple(random.Random(f"{name}{k}").randbytes(3))
            Image.new("RGB", (64, 64), colour).save(folder / name / f"{k}.png")
            (folder / name / f"{k}.txt").write_text(f"a [trigger] number {k}", encoding="utf-8")


class Child:
    """A process that trains a run and tells what it does, a line for each event."""

    def __init__(self, path: Path) -> None:
        self.told = {"phase": "", "step": 0, "saved": 0, "drawn": 0}
        reader, writer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            try:
                outcome = TrainingJob(RunFolder.open(path)).run_here(lambda event: _tell(writer, event))
                os.write(writer, f"outcome {outcome}\n".encode())
            except BaseException as error:  # noqa: BLE001 - a fork must not run the parent's code
                os.write(writer, f"failed {error!r}\n".encode())
            os._exit(0)
        os.close(writer)
        self._pipe, self._rest = reader, b""
        self.ended: str | None = None

    def listen(self, seconds: float) -> None:
        """Takes in what it tells, for a while or until it ends."""
        end = time.monotonic() + seconds
        while self.ended is None and (left := end - time.monotonic()) > 0:
            if not select.select([self._pipe], [], [], left)[0]:
                return
            data = os.read(self._pipe, 65536)
            if not data:
                self.ended = self.ended or "gone"
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                word, _, value = line.decode().partition(" ")
                if word in ("outcome", "failed"):
                    self.ended = value if word == "outcome" else f"failed: {value}"
                else:
                    self.told[word] = value if word == "phase" else int(value)

    def kill(self) -> None:
        """SIGKILL; then what it told until then."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        while self.ended is None:
            self.listen(1)
        os.close(self._pipe)


def _tell(writer: int, event: Event) -> None:
    text = ""
    if isinstance(event, Phase):
        text = f"phase {event.what}"
    elif isinstance(event, StepDone):
        text = f"step {event.step}"
    elif isinstance(event, CheckpointSaved):
        text = f"saved {event.step}"
    elif isinstance(event, SampleReady):
        text = f"drawn {event.step}"
    if text:
        os.write(writer, f"{text}\n".encode())


def wait_for(child: Child, moment: str, run: Path, draw: random.Random) -> None:
    """Until the moment to kill; or until the child ends."""
    if moment == "preparing":
        child.listen(draw.uniform(0, 1.5))
        return
    first = child.told["step"]
    steps = draw.randint(1, 5)
    while child.ended is None and child.told["step"] in (0, first):  # it must come on, or the run never ends
        child.listen(0.05)
    if moment == "training":
        child.listen(draw.uniform(0, 0.4 * steps))
        return
    pattern = ("checkpoints", (".tmp_*", ".old_*")) if moment == "saving" else ("samples", ("*/.*.tmp", "*/*.png"))
    known = _found(run, *pattern)
    while child.ended is None and not _found(run, *pattern) - known:
        child.listen(0.0005)
    time.sleep(draw.uniform(0, 0.006))  # a save takes about 10 ms on an idle machine


def _found(run: Path, folder: str, patterns: tuple[str, ...]) -> set[Path]:
    return {path for pattern in patterns for path in (run / folder).glob(pattern)}


def place(child: Child, run: Path) -> str:
    """Where the kill fell."""
    if any((run / "checkpoints").glob(".tmp_*")):
        return "inside a save"
    if any((run / "checkpoints").glob(".old_*")):
        return "inside a removal"
    return "training" if child.told["step"] else f"preparing ({child.told['phase'] or 'before anything'})"


def metrics(run: RunFolder) -> list[dict[str, Any]]:
    """The lines without what differs between two runs: times and memory."""
    return [{k: v for k, v in line.items() if k not in ("seconds_per_step", "peak_memory")} for line in run.metrics()]


def check_after_kill(run: RunFolder, child: Child) -> int:
    """How many reported steps are lost.

    Raises:
        AssertionError: if more than a save interval is, or no intact checkpoint is left.
    """
    reached = child.told["step"]
    latest = run.latest()
    saved = latest.step if latest else 0
    assert saved >= child.told["saved"], (
        f"step {child.told['saved']} was reported as saved, the newest intact is {saved}"
    )
    assert reached - saved <= SAVE_EVERY, f"step {reached} was reported, the newest intact checkpoint is of {saved}"
    return max(0, reached - saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder that is removed")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="kill_nine_"))
    os.environ["LORA_FOUNDRY_STATE"] = str(root / "state")
    draw, started = random.Random(options.seed), time.monotonic()
    pictures(root / "pictures")
    config = job(root / "pictures")
    whole = RunFolder.create(root / "whole", config)
    child = Child(whole.path)
    while child.ended is None:
        child.listen(1)
    os.waitpid(child.pid, 0)
    assert child.ended == "finished", child.ended
    expected = whole.latest()
    assert expected is not None
    places: Counter[str] = Counter()
    lost: Counter[int] = Counter()
    kills = runs = lives = 0
    while kills < options.rounds:
        run, finished = RunFolder.create(root / f"runs_{runs}", config), False
        runs += 1
        while not finished:
            child = Child(run.path)
            lives += 1
            if kills < options.rounds:
                wait_for(child, draw.choices([*MOMENTS], [*MOMENTS.values()])[0], run.path, draw)
            while child.ended is None and kills >= options.rounds:
                child.listen(1)
            if child.ended is None:
                child.kill()
                kills += 1
                places[place(child, run.path)] += 1
                lost[check_after_kill(RunFolder.open(run.path), child)] += 1
            else:
                os.waitpid(child.pid, 0)
                assert child.ended == "finished", f"life {lives}: {child.ended}"
                finished = True
        latest = run.latest()
        assert latest is not None
        assert latest.lora.read_bytes() == expected.lora.read_bytes(), "the LoRA is another one"
        assert metrics(run) == metrics(whole), "the metrics are others"
        assert not [path.name for path in (run.path / "checkpoints").iterdir() if path.name.startswith(".")]
        shutil.rmtree(run.path.parent)
    result = {
        "kills": kills,
        "processes": lives,
        "runs finished, byte for byte as undisturbed": runs,
        "steps lost per kill": dict(sorted(lost.items())),
        "where the kills fell": dict(places.most_common()),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not options.folder:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
