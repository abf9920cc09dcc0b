"""Two processes are told at the same time to go on with the same run: one does, the other says who holds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from trainer_core.config import load_job
from trainer_core.job import TrainingJob
from trainer_core.runs.run_folder import RunFolder

ROUNDS = 2
STEPS = 60  # enough that the second comes while the first still works, on a busy machine too
CODE = """
import sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
from trainer_core.cli import main
import trainer_core.training.loop
print("ready", flush=True)
for line in sys.stdin:
    code = main(["resume", line.strip()])
    print("code", code, file=sys.stderr, flush=True)
"""


@pytest.fixture
def racers() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that have imported everything and resume the runs that they are told: what follows is the race."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([sys.executable, "-c", CODE], text=True, bufsize=1, **pipes) for _ in range(2)]
    try:
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield both
    finally:
        for process in both:
            process.kill()
            process.communicate()


def told(errors: IO[str] | None) -> tuple[int, str]:
    """The exit code of a racer's command, and what it printed before."""
    assert errors is not None
    text = ""
    for line in errors:
        if line.startswith("code "):
            return int(line.split()[1]), text
        text += line
    raise AssertionError(f"it ended:\n{text}")


def test_one_works_and_the_other_says_who_holds_it(
    make_job: Callable[..., Path], tmp_path: Path, racers: list[subprocess.Popen[str]]
) -> None:
    job = load_job(make_job(train={"steps": STEPS, "deterministic": True}, save={"every": 20}))
    straight = RunFolder.create(tmp_path / "runs", job)
    assert TrainingJob(straight).run_here(lambda _: None) == "finished"
    for _ in range(ROUNDS):
        run = RunFolder.create(tmp_path / "runs", job)
        for process in racers:
            assert process.stdin is not None
            process.stdin.write(f"{run.path}\n")
            process.stdin.flush()
        codes, errors = zip(*(told(process.stderr) for process in racers), strict=True)
        assert sorted(codes) == [0, 1], errors
        loser = codes.index(1)
        assert f"process {racers[1 - loser].pid} on " in errors[loser]
        assert "Traceback" not in errors[loser]
        assert run.status()["state"] == "finished"
        assert [line["step"] for line in run.metrics()] == list(range(1, STEPS + 1))
        ours, theirs = run.latest(), straight.latest()
        assert ours is not None
        assert theirs is not None
        assert ours.state.read_bytes() == theirs.state.read_bytes()
