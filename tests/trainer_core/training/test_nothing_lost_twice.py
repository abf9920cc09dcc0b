"""Two processes are told at the same time to go on with the same run: one does, the other says who holds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from trainer_core.config import load_job
from trainer_core.job import TrainingJob
from trainer_core.runs.run_folder import RunFolder

ROUNDS = 2
CODE = """
import sys
from pathlib import Path
import torch
from trainer_core.cli import main
import trainer_core.training.loop
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(["resume", sys.argv[1]]))
"""


def test_one_works_and_the_other_says_who_holds_it(make_job: Callable[..., Path], tmp_path: Path) -> None:
    job = load_job(make_job(train={"steps": 10, "deterministic": True}, save={"every": 5}))
    straight = RunFolder.create(tmp_path / "runs", job)
    assert TrainingJob(straight).run_here(lambda _: None) == "finished"
    for _ in range(ROUNDS):
        run = RunFolder.create(tmp_path / "runs", job)
        command = [sys.executable, "-c", CODE, str(run.path)]
        both = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
            for _ in range(2)
        ]
        for process in both:  # everything is imported: what follows is the race
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in both:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate()[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 1], errors
        loser = next(number for number, process in enumerate(both) if process.returncode == 1)
        assert f"process {both[1 - loser].pid} on " in errors[loser]
        assert "Traceback" not in errors[loser]
        assert run.status()["state"] == "finished"
        assert [line["step"] for line in run.metrics()] == list(range(1, 11))
        ours, theirs = run.latest(), straight.latest()
        assert ours is not None
        assert theirs is not None
        assert ours.state.read_bytes() == theirs.state.read_bytes()
