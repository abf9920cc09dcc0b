"""A job: its events, its states, its thread, and how it fails."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer_core.checks import check_job
from trainer_core.config import JobConfig
from trainer_core.errors import BaseModelError, ConfigError, DatasetError, FoundryError, Interrupted, TrainingError
from trainer_core.families.sources import source as sources
from trainer_core.job import TrainingJob
from trainer_core.runs.events import CheckpointSaved, Event, Phase, SampleReady, StateChanged, StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.training.updates import Updates

Jobs = Callable[..., JobConfig]


def new(job: JobConfig, root: Path) -> TrainingJob:
    # not TrainingJob.new, which refuses a job that cannot start: here it cannot any more (a drive is gone, say)
    return TrainingJob(RunFolder.create(root / "runs", job), job)


def failed(job: JobConfig, root: Path) -> tuple[FoundryError, RunFolder, list[Event]]:
    """A run that must fail in a way that a user can read."""
    training, events = new(job, root), []
    with pytest.raises(FoundryError) as caught:
        training.run_here(events.append)
    assert (training.outcome, training.error) == ("failed", caught.value)
    status = training.run.status()
    assert status["state"] == "failed"
    assert status["error"] == str(caught.value)
    assert isinstance(events[-1], StateChanged)
    assert (events[-1].state, events[-1].error) == ("failed", str(caught.value))
    assert "Traceback" not in (training.run.path / "log.txt").read_text()
    return caught.value, training.run, events


# --- what a run tells and leaves -------------------------------------------------------------------------------------


def test_events_of_a_run(job_of: Jobs, tmp_path: Path) -> None:
    sample = {"prompts": ("a [trigger]", "a cat"), "every": 2, "before_training": True}
    training, events = new(job_of(train={"steps": 5}, save={"every": 2}, sample=sample), tmp_path), []
    assert training.run_here(events.append) == "finished"
    assert (training.outcome, training.error, training.alive) == ("finished", None, False)
    states = [(event.state, event.step, event.steps) for event in events if isinstance(event, StateChanged)]
    assert states == [("running", 0, 5), ("finished", 5, 5)]
    assert (events[0], events[-1]) == (StateChanged("running", 0, 5), StateChanged("finished", 5, 5))
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5]
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [2, 4, 5]
    drawn = [(event.step, event.index, event.prompt) for event in events if isinstance(event, SampleReady)]
    assert drawn == [(step, k, p) for step in (0, 2, 4, 5) for k, p in enumerate(("a [trigger]", "a cat"))]
    assert all(event.path.is_file() for event in events if isinstance(event, (SampleReady,)))
    phases = [event.what for event in events if isinstance(event, Phase)]
    assert list(dict.fromkeys(phases)) == [
        "scanning the data",
        "checking the base",
        "looking through the cache",
        "loading the text encoders",
        "encoding captions",
        "loading the VAE",
        "encoding images",
        "loading the base",
        "drawing sample",
    ]
    for event in events:
        if isinstance(event, StepDone):
            assert event.peak_memory > 1e6
            assert event.seconds_per_step > 0
            assert event.eta_seconds == pytest.approx(event.seconds_per_step * (5 - event.step))
            assert event.lr == 1e-2


def test_files_of_a_run(job_of: Jobs, tmp_path: Path) -> None:
    """Design §5, to the letter."""
    training = new(
        job_of(train={"steps": 4}, save={"every": 2}, sample={"prompts": ("a [trigger]",), "every": 3}), tmp_path
    )
    training.run_here(lambda _: None)
    names = sorted(str(p.relative_to(training.run.path)) for p in training.run.path.rglob("*") if p.is_file())
    assert names == [
        ".lock",
        *(
            f"checkpoints/step_0000000{k}/{n}"
            for k in (2, 4)
            for n in ("lora.safetensors", "manifest.json", "state.safetensors")
        ),
        "job.yaml",
        "log.txt",
        "metrics.jsonl",
        "run.json",
        "samples/step_00000003/00.png",
        "samples/step_00000004/00.png",
    ]
    lines = [json.loads(line) for line in (training.run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line.keys() >= {"step", "loss", "lr", "seconds_per_step"} for line in lines)
    assert training.run.status()["state"] == "finished"


def test_a_checkpoint_holds_exactly_its_updates(job_of: Jobs, tmp_path: Path) -> None:
    """Step n of a long run is the end of a run of n steps; AdamW's own count says n."""
    training = new(job_of(train={"steps": 4}, save={"every": 1, "keep": 9}), tmp_path)
    training.run_here(lambda _: None)
    for checkpoint in training.run.checkpoints():
        short = new(job_of(train={"steps": checkpoint.step}), tmp_path)
        short.run_here(lambda _: None)
        ours, theirs = load_file(checkpoint.state), load_file(short.run.latest().state)  # type: ignore[union-attr]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        counts = {
            value.item() for name, value in ours.items() if name.startswith("optimizer.") and name.endswith(".step")
        }
        assert counts == {checkpoint.step}


def test_fewer_metrics_where_asked_for_but_always_the_last(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(train={"steps": 5, "log_every": 2}), tmp_path)
    training.run_here(lambda _: None)
    assert [line["step"] for line in training.run.metrics()] == [2, 4, 5]


# --- the thread ------------------------------------------------------------------------------------------------------


def wait(training: TrainingJob, until: Callable[[Event], bool]) -> list[Event]:
    """Events up to one of a kind; gives up after two minutes."""
    events: list[Event] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for event in training.events():
            events.append(event)
            if until(event):
                return events
        if not training.alive:
            return events + training.events()
        time.sleep(0.01)
    raise AssertionError("nothing came")


def test_a_thread_trains_stops_and_goes_on(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(train={"steps": 100_000}), tmp_path)
    assert (training.alive, training.outcome, training.events()) == (False, None, [])
    training.start()
    assert training.alive
    wait(training, lambda event: isinstance(event, StepDone) and event.step >= 2)
    training.stop()
    training.join(120)
    assert (training.alive, training.outcome, training.error) == (False, "stopped", None)
    left = training.events()
    last = left[-1]
    assert isinstance(last, StateChanged)
    assert last.state == "stopped"
    assert training.events() == []
    latest = training.run.latest()
    assert latest is not None
    assert latest.step == last.step == training.run.status()["step"] >= 2
    assert training.run.metrics()[-1]["step"] == latest.step

    again = TrainingJob(RunFolder.open(training.run.path))
    again.start()
    events = wait(again, lambda event: isinstance(event, StepDone))
    again.stop()
    again.join(120)
    assert events[-1].step == latest.step + 1  # type: ignore[attr-defined]


def test_stopped_before_it_starts(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(), tmp_path)
    training.stop()
    assert training.run_here(lambda _: None) == "stopped"
    assert training.run.status()["state"] == "stopped"
    assert training.run.checkpoints() == []
    assert TrainingJob(training.run).run_here(lambda _: None) == "finished"


@pytest.mark.parametrize(
    "what", ["loading the text encoders", "encoding captions", "encoding images", "loading the base"]
)
def test_stopped_while_preparing(what: str, job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(), tmp_path)

    def listen(event: Event) -> None:
        if isinstance(event, Phase) and event.what == what:
            training.stop()

    assert training.run_here(listen) == "stopped"
    assert training.run.status()["state"] == "stopped"
    assert TrainingJob(training.run).run_here(lambda _: None) == "finished"


def test_stopped_while_drawing(job_of: Jobs, tmp_path: Path) -> None:
    """Before the first step, and after one: what was trained is saved at once, and no preview is half drawn."""
    sample = {"prompts": ("a", "b", "c"), "every": 1, "before_training": True}
    training = new(job_of(sample=sample), tmp_path)

    def listen(event: Event) -> None:
        if isinstance(event, SampleReady):
            training.stop()

    assert training.run_here(listen) == "stopped"
    assert [path.name for path in training.run.sample_paths(0)] == ["00.png"]
    again = TrainingJob(training.run)

    def listen_again(event: Event) -> None:
        if isinstance(event, SampleReady) and event.step == 1:
            again.stop()

    assert again.run_here(listen_again) == "stopped"
    assert training.run.status()["step"] == 1
    assert [checkpoint.step for checkpoint in training.run.checkpoints()] == [1]


def test_a_host_that_interrupts_a_preview_stops_the_run_there(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's models see a cancel before the node does that would ask for the stop: no step is made in between."""

    def cancelled(*_given: object) -> None:
        raise Interrupted

    monkeypatch.setattr("trainer_core.training.previews.draw", cancelled)
    training = new(job_of(sample={"prompts": ("a",), "every": 1}), tmp_path)
    assert training.run_here(lambda _: None) == "stopped"
    assert (training.run.status()["state"], training.run.status()["step"]) == ("stopped", 1)


def test_asked_to_stop_at_the_last_step_is_finished(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(), tmp_path)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            training.stop()

    assert training.run_here(listen) == "finished"
    assert training.run.latest().step == 3  # type: ignore[union-attr]


def test_a_thread_that_fails_says_so_and_keeps_the_error(job_of: Jobs, tmp_path: Path) -> None:
    training = new(job_of(dataset={"folder": str(tmp_path / "nowhere")}), tmp_path)
    training.start()
    training.join(120)
    assert (training.alive, training.outcome) == (False, "failed")
    assert isinstance(training.error, DatasetError)
    last = training.events()[-1]
    assert isinstance(last, StateChanged)
    assert (last.state, last.error) == ("failed", str(training.error))


def test_inside_inference_mode(job_of: Jobs, tmp_path: Path) -> None:
    """ComfyUI runs nodes inside of it."""
    with torch.inference_mode():
        assert new(job_of(sample={"prompts": ("a",)}), tmp_path).run_here(lambda _: None) == "finished"


# --- failures --------------------------------------------------------------------------------------------------------


def test_no_such_base(job_of: Jobs, tmp_path: Path) -> None:
    error, run, _ = failed(job_of(model={"source": "no such base"}), tmp_path)
    assert isinstance(error, BaseModelError)
    assert "no such base" in str(error)
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "job.yaml", "log.txt", "run.json"]


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer_2", "scheduler"])
def test_a_base_that_lacks_a_part(part: str, job_of: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "half a base"
    shutil.copytree(sources.EMBEDDED, folder, ignore=shutil.ignore_patterns(part))
    error, _, _ = failed(job_of(model={"source": str(folder)}), tmp_path)
    assert isinstance(error, BaseModelError)
    assert "half a base" in str(error)
    assert part in str(error)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
def test_a_base_with_a_truncated_part(part: str, job_of: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "cut base"
    shutil.copytree(sources.EMBEDDED, folder)
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:20_000])
    error, _, _ = failed(job_of(model={"source": str(folder)}), tmp_path)
    assert isinstance(error, BaseModelError)
    assert part in str(error)


def test_an_unknown_family_and_device(job_of: Jobs, tmp_path: Path) -> None:
    error, _, _ = failed(job_of(model={"family": "flux"}), tmp_path)
    assert isinstance(error, ConfigError)
    assert "flux1" in str(error)
    error, _, _ = failed(job_of(model={"device": "toaster"}), tmp_path)
    assert isinstance(error, ConfigError)
    assert "toaster" in str(error)


def test_a_preview_size_that_does_not_fit_is_told_before_anything_is_done(job_of: Jobs, tmp_path: Path) -> None:
    error, _, events = failed(job_of(sample={"width": 100}), tmp_path)
    assert isinstance(error, ConfigError)
    assert "sample.width" in str(error)
    assert not [event for event in events if isinstance(event, Phase)]


def test_a_broken_image_stops_the_run_before_training(job_of: Jobs, pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "broken"))
    (folder / "red.png").write_bytes((folder / "red.png").read_bytes()[:120])
    error, run, _ = failed(job_of(dataset={"folder": str(folder)}), tmp_path)
    assert isinstance(error, DatasetError)
    assert "red.png" in str(error)
    assert run.checkpoints() == []


def test_out_of_memory_is_told_in_words(job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(self: Updates, _: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Updates, "advance", advance)
    error, _, _ = failed(job_of(), tmp_path)
    assert isinstance(error, TrainingError)
    assert "memory" in str(error)


def test_a_bug_is_a_failure_with_its_traceback_in_the_log(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(self: Updates, _: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(Updates, "advance", advance)
    training = new(job_of(), tmp_path)
    with pytest.raises(KeyError):
        training.run_here(lambda _: None)
    assert training.outcome == "failed"
    assert training.run.status()["state"] == "failed"
    assert "surprise" in training.run.status()["error"]
    assert "Traceback" in (training.run.path / "log.txt").read_text()


def test_a_log_that_cannot_be_written(job_of: Jobs, tmp_path: Path) -> None:
    """The run still says that it has failed, and why."""
    training, events = new(job_of(), tmp_path), []
    (training.run.path / "log.txt").mkdir()
    with pytest.raises(FoundryError, match=r"log\.txt"):
        training.run_here(events.append)
    assert training.run.status()["state"] == "failed"
    assert "log.txt" in training.run.status()["error"]
    assert events[-1].state == "failed"


def test_a_part_in_full_precision_needs_a_base_that_is_not(job_of: Jobs) -> None:
    with pytest.raises(ConfigError, match=r"model\.low_rank: .* model\.quantization"):
        check_job(job_of(model={"low_rank": 4}))
    check_job(job_of(model={"low_rank": 4, "quantization": "4bit"}))
