"""Nothing is lost: a run that was stopped, broken or killed ends bit for bit like one that never was."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.config import JobConfig
from trainer_core.errors import FoundryError
from trainer_core.job import TrainingJob
from trainer_core.runs.events import CheckpointSaved, Event, StepDone, Warning
from trainer_core.runs.run_folder import RunFolder

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]


@pytest.fixture
def job(job_of: Jobs) -> JobConfig:
    """All that draws numbers is on."""
    return job_of(
        dataset={"flip_x": True, "caption_dropout": 0.3, "weight": 1.5},
        adapter={"dropout": 0.2, "alpha": 1.0},
        train={"steps": 7, "batch_size": 3, "gradient_accumulation": 2, "lr_scheduler": "cosine", "warmup_steps": 2},
        save={"every": 2, "keep": 2},
    )


def go_on(run: RunFolder, stop_at: int | None = None) -> tuple[str, list[Event]]:
    """Goes on with a run as a new process does; asks for a stop when a step is done."""
    training, events = TrainingJob(RunFolder.open(run.path)), []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop_at:
            training.stop()

    return training.run_here(listen), events


def lora(run: RunFolder) -> bytes:
    latest = run.latest()
    assert latest is not None
    return latest.lora.read_bytes()


def comparable(run: RunFolder) -> list[dict[str, Any]]:
    """Metrics but for the times."""
    return [{key: line[key] for key in ("step", "loss", "lr", "grad_norm")} for line in run.metrics()]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stopped_anywhere_and_resumed(seed: int, job: JobConfig, train: Train, tmp_path: Path) -> None:
    straight = train(job).run
    run = RunFolder.create(tmp_path / "runs", job)
    stops = sorted(random.Random(seed).sample(range(1, 7), 2 + seed % 2))
    for stop in stops:
        outcome, _ = go_on(run, stop)
        assert outcome == "stopped"
        assert run.status()["state"] == "stopped"
        assert run.status()["step"] == stop
        assert run.latest().step == stop  # type: ignore[union-attr]
    assert go_on(run)[0] == "finished"
    assert lora(run) == lora(straight)
    assert run.latest().state.read_bytes() == straight.latest().state.read_bytes()  # type: ignore[union-attr]
    assert comparable(run) == comparable(straight)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [6, 7]


@pytest.fixture
def everything(job_of: Jobs, half_triggered: Path, others: Path) -> JobConfig:
    """Two weighted training sets, one of them at half strength, a regularization set and one to validate on."""
    folder = {"folder": str(half_triggered)}
    job = job_of(
        datasets=[
            {"flip_x": True, "caption_dropout": 0.3, "weight": 2.0},
            {**folder, "adapter_strength": 0.5, "weight": 0.7, "loss_weight": 2.0, "shuffle_tags": True},
            {**folder, "role": "regularization", "trigger": None, "regularization_target": "base"},
            {"folder": str(others), "role": "validation", "trigger": None},
        ],
        adapter={"dropout": 0.2},
        train={
            "steps": 5,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "ema_decay": 0.9,
            "lr_scheduler": "cosine",
            "stage_boundaries": (0.5,),
            "stage_switch_every": 2,
            "min_snr_gamma": 5.0,
        },
        save={"every": 2},
    )
    preservation = {"output_preservation": True, "output_preservation_class": "shape", "blank_preservation": True}
    return job.but(
        regularization={**preservation, "preservation_every": 2, "differential_guidance": True, "ratio": 0.3},
        validation={"every": 3, "draws": 1},
    )


def measured(run: RunFolder) -> list[dict[str, Any]]:
    """Metrics with validation and all parts, but for times and memory."""
    return [
        {key: value for key, value in line.items() if key not in ("seconds_per_step", "peak_memory")}
        for line in run.metrics()
    ]


def test_stopped_and_resumed_with_all_of_the_objective_on(
    everything: JobConfig, train: Train, shared_root: Path
) -> None:
    """Moving average, preservation, dropout, guidance, weighted sets, stages, validation: bit for bit."""
    straight = train(everything, root=shared_root).run
    run = RunFolder.create(shared_root, everything)
    assert go_on(run, 1)[0] == "stopped"
    assert go_on(run, 4)[0] == "stopped"
    assert go_on(run)[0] == "finished"
    assert lora(run) == lora(straight)
    assert run.latest().state.read_bytes() == straight.latest().state.read_bytes()  # type: ignore[union-attr]
    assert measured(run) == measured(straight)
    assert [line["step"] for line in measured(run) if "validation_loss" in line] == [0, 3, 5]


@pytest.mark.parametrize("step", [2, 3], ids=["in between", "at the end"])
def test_a_stop_loses_no_measurement(step: int, job_of: Jobs, train: Train, shared_root: Path, others: Path) -> None:
    """Asked for in a step after which is measured: before it stops, or when it goes on, but not never."""
    datasets = [{}, {"folder": str(others), "role": "validation", "trigger": None}]
    job = job_of(datasets=datasets).but(validation={"every": 2, "draws": 1})
    straight = train(job, root=shared_root).run
    run = RunFolder.create(shared_root, job)
    go_on(run, step)
    assert go_on(run)[0] == "finished"
    assert lora(run) == lora(straight)
    assert measured(run) == measured(straight)


def test_a_moving_average_that_the_checkpoint_lacks_is_told(job_of: Jobs, train: Train, shared_root: Path) -> None:
    run = train(job_of(train={"steps": 1}), root=shared_root).run
    averaged = job_of(train={"steps": 2, "ema_decay": 0.9})
    with pytest.raises(FoundryError, match="ema_decay"):
        TrainingJob(run, averaged).run_here(lambda _: None)


def test_killed_between_checkpoints_and_resumed(job: JobConfig, train: Train, tmp_path: Path) -> None:
    """The process is gone after step 5: the steps since the checkpoint at 4 are made again, the same."""
    straight, events = train(job).run, []
    run = RunFolder.create(tmp_path / "runs", job)

    class Killed(BaseException):
        pass

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise Killed

    with pytest.raises(Killed):
        TrainingJob(run).run_here(listen)
    # what a kill leaves: a run that says it is running, half a line, half a checkpoint
    run.write_status("running", 5, 7)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    shutil.copytree(run.path / "checkpoints" / "step_00000004", run.path / "checkpoints" / ".tmp_12345678")
    outcome, events = go_on(run)
    assert outcome == "finished"
    assert [event.step for event in events if isinstance(event, StepDone)] == [5, 6, 7]
    assert lora(run) == lora(straight)
    assert comparable(run) == comparable(straight)
    assert not list((run.path / "checkpoints").glob(".*"))


def test_killed_by_the_system_and_resumed(job: JobConfig, train: Train, tmp_path: Path) -> None:
    """SIGKILL in another process, at whatever it was doing."""
    straight = train(job).run
    run = RunFolder.create(tmp_path / "runs", job)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "import trainer_core.families.sources as sources\n"
        "from trainer_core.runs.events import CheckpointSaved, StepDone\n"
        "from trainer_core.job import TrainingJob\n"
        "from trainer_core.runs.run_folder import RunFolder\n"
        "sources.EMBEDDED = Path(sys.argv[2])\n"
        "def listen(event):\n"
        "    if isinstance(event, StepDone) and event.step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "TrainingJob(RunFolder.open(Path(sys.argv[1]))).run_here(listen)\n"
    )
    import sys

    from trainer_core.families.sources import source as sources

    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path), str(sources.EMBEDDED)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode != 0
    assert run.status()["state"] == "running", done.stderr[-2000:]
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2]
    assert go_on(run)[0] == "finished"
    assert lora(run) == lora(straight)


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "no manifest"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(damage: str, job: JobConfig, train: Train) -> None:
    straight = train(job).run
    whole, run = lora(straight), straight
    last = run.path / "checkpoints" / "step_00000007"
    if damage == "no manifest":
        (last / "manifest.json").unlink()
    else:
        data = bytearray((last / "state.safetensors").read_bytes())
        data[-5] ^= 1
        (last / "state.safetensors").write_bytes(data[:-100] if damage == "truncated" else data)
    outcome, events = go_on(run)
    assert outcome == "finished"
    assert [event.step for event in events if isinstance(event, StepDone)] == [7]
    assert any("step_00000007" in event.message for event in events if isinstance(event, Warning))
    assert "step_00000007" in (run.path / "log.txt").read_text()
    assert lora(run) == whole
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [6, 7]


def test_all_checkpoints_damaged_starts_over(job: JobConfig, train: Train) -> None:
    run = train(job).run
    whole = lora(run)
    for path in (run.path / "checkpoints").iterdir():
        (path / "lora.safetensors").write_bytes(b"")
    outcome, events = go_on(run)
    assert outcome == "finished"
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 8))
    assert lora(run) == whole


def test_a_finished_run_does_nothing_more(job: JobConfig, train: Train) -> None:
    run = train(job).run
    before = lora(run)
    outcome, events = go_on(run)
    assert outcome == "finished"
    assert not [event for event in events if isinstance(event, (StepDone, CheckpointSaved))]
    assert lora(run) == before


def test_more_steps_go_on_from_the_last(job_of: Jobs, train: Train, tmp_path: Path) -> None:
    """A finished run with a constant rate, extended: the same as if it had been that long from the start."""
    long = train(job_of(train={"steps": 5})).run
    run = train(job_of(train={"steps": 3})).run
    assert TrainingJob(run, job_of(train={"steps": 5})).run_here(lambda _: None) == "finished"
    assert run.latest().state.read_bytes() == long.latest().state.read_bytes()  # type: ignore[union-attr]


def test_a_checkpoint_of_another_shape_is_refused_with_a_message(job_of: Jobs, train: Train) -> None:
    run = train(job_of()).run
    with pytest.raises(FoundryError, match=r"adapter\.rank: was 2, is 3"):
        TrainingJob(run, job_of(adapter={"rank": 3}, train={"steps": 5})).run_here(lambda _: None)
    assert run.latest().step == 3  # type: ignore[union-attr]
