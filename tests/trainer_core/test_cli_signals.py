"""Ctrl-C and SIGTERM, as a job of the command line hears them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core.commands.following import stop_on_signal
from trainer_core.runs.queue import DeviceQueue

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a signal to a process ends it there")


class Job:
    """Counts how often it is asked to stop."""

    stops = 0
    keeps_place = False

    def stop(self, keep_place: bool = False) -> None:
        self.stops += 1
        self.keeps_place = keep_place


def test_ctrl_c_stops_the_job_and_the_second_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    job, before = Job(), signal.getsignal(signal.SIGINT)
    with stop_on_signal(job) as asked:  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        assert (job.stops, asked.stop, asked.at_once, job.keeps_place) == (1, True, False, False)
        assert "stopping after this step, then saving; once more to leave at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert (job.stops, asked.at_once) == (1, True)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_stay_polite(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    job, number = Job(), getattr(signal, name)
    before = signal.getsignal(number)
    with stop_on_signal(job) as asked:  # type: ignore[arg-type]
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert (job.stops, asked.stop, asked.at_once, job.keeps_place) == (1, True, False, True)
        assert "once more" not in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):  # a stop was asked for already: Ctrl-C now means at once
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal(Job()) as asked:  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "again", "saved"),
    [(signal.SIGINT, signal.SIGINT, False), (signal.SIGTERM, signal.SIGTERM, True)],
    ids=["Ctrl-C twice", "SIGTERM twice"],
)
def test_in_the_middle_of_a_step(
    number: signal.Signals,
    again: signal.Signals,
    saved: bool,
    make_job: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes two seconds here, so that the second signal comes before the first has had its effect."""
    monkeypatch.chdir(tmp_path)
    job = make_job(train={"steps": 9, "gradient_accumulation": 20})
    command = [sys.executable, "-u", "-m", "trainer_core", "train", str(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any(line.startswith("step 1/9") for line in process.stdout)
        time.sleep(0.5)  # into the second step: between two, the stop takes effect at once
        process.send_signal(number)
        told = next(line for line in process.stderr if "stopping" in line)
        process.send_signal(again)
        printed, complaints = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    assert ("once more" in told) == (not saved)
    status = json.loads(Path("runs/tiny/run.json").read_text(encoding="utf-8"))
    checkpoints = [int(path.name[5:]) for path in Path("runs/tiny/checkpoints").glob("step_*")]
    last = printed.splitlines()[-1]
    assert status["state"] == "stopped"
    assert not Path("runs/tiny/owner.json").exists()
    assert [one.run.name for one in DeviceQueue("cpu").tickets()] == (["tiny"] if saved else []), "SIGTERM keeps it"
    if saved:
        assert checkpoints == [status["step"]]
        assert last == f"stopped, saved at step {status['step']}. To go on: lora-foundry resume tiny"
    else:
        assert (checkpoints, status["step"]) == ([], 0)
        assert "is not saved, nor any other. To go on: lora-foundry resume tiny" in last
        assert "leaving at once" in complaints


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0])
def test_ctrl_c_before_training_has_begun(
    delay: float, make_job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the moment that there is a run's folder: it is gone again, or says that it was stopped."""
    monkeypatch.chdir(tmp_path)
    job, run = make_job(train={"steps": 5000}), Path("runs/tiny")
    command = [sys.executable, "-m", "trainer_core", "train", str(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not run.exists():
            assert process.poll() is None
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        printed, complaints = process.communicate(timeout=120)
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    assert DeviceQueue("cpu").tickets() == []
    if run.exists():
        assert json.loads((run / "run.json").read_text(encoding="utf-8"))["state"] == "stopped"
        assert "To go on: lora-foundry resume tiny" in printed


@pytest.mark.parametrize("delay", [0.7, 1.5, 2.5])
def test_ctrl_c_while_the_program_starts(
    delay: float, make_job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "trainer_core", "train", str(make_job(train={"steps": 5000}))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=120)
    # -SIGINT, which a shell shows as 130: Python ends so when the signal came while a library defined itself by exec
    assert process.returncode in (130, -signal.SIGINT), complaints
    assert "Traceback" not in complaints
    for status in Path("runs").glob("*/run.json"):
        assert json.loads(status.read_text(encoding="utf-8"))["state"] == "stopped"
    assert all((path / "run.json").exists() for path in Path("runs").glob("[a-z]*"))
