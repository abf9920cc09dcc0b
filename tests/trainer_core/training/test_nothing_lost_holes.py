"""Nothing is lost in places where one does not look: between two writes, while a run waits, when folders move."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.config import JobConfig
from trainer_core.errors import FoundryError, ResumeRefused, SaveError
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, Phase, StateChanged, StepDone, Warning
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_folder import RunFolder
from trainer_core.runs.status import run_state
from trainer_core.training.update import Batches, Made, NotFinite, Updater

Jobs = Callable[..., JobConfig]
Listen = Callable[[TrainingJob, Event], None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder, whose cache serves all tests of this module."""
    return tmp_path_factory.mktemp("runs")


def go_on(run: RunFolder, listen: Listen | None = None, job: JobConfig | None = None, **more: Any) -> str:
    training = TrainingJob(RunFolder.open(run.path), job, **more)
    return training.run_here(lambda event: listen(training, event) if listen else None)


def stop_at(step: int) -> Listen:
    def listen(training: TrainingJob, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            training.stop()

    return listen


class Killed(BaseException):
    """The process is gone."""


def die_at(step: int) -> Listen:
    def listen(_: TrainingJob, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise Killed

    return listen


def die(run: RunFolder, step: int, **more: Any) -> None:
    with pytest.raises(Killed):
        go_on(run, die_at(step), **more)


def lora(run: RunFolder) -> bytes:
    latest = run.latest()
    assert latest is not None
    return latest.lora.read_bytes()


def lines(run: RunFolder) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in ("seconds_per_step", "peak_memory")}
        for line in run.metrics()
    ]


def pictures_of(run: RunFolder) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.glob("samples/*/*.png")}


# --- between two writes ----------------------------------------------------------------------------------------------


def test_a_failure_after_a_batch_was_passed_over_loses_no_line(
    job_of: Jobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 3 passes a batch over and then fails: the checkpoint of step 2 that is rescued must not skip it silently."""
    job = job_of(train={"steps": 4, "deterministic": True})
    original, broken = Updater.update, [False]

    def update(self: Updater, batches: Batches, step: int) -> Made:
        if batches[0].number == 2:
            raise NotFinite(step + 1, "loss", batches)
        if batches[0].number == 3 and broken[0]:
            raise OSError("the cable was pulled")
        return original(self, batches, step)

    monkeypatch.setattr(Updater, "update", update)
    straight, run = RunFolder.create(root, job), RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    broken[0] = True
    with pytest.raises(OSError, match="cable"):
        go_on(run)
    broken[0] = False
    assert go_on(run) == "finished"
    assert lora(run) == lora(straight)
    assert lines(run) == lines(straight)


def test_a_line_that_could_not_be_written_is_made_up_for(
    job_of: Jobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for a moment, just when the line of step 2 is due."""
    job = job_of(train={"steps": 4, "deterministic": True})
    straight, run = RunFolder.create(root, job), RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    original, failed = RunFolder.append_metrics, []

    def append(self: RunFolder, values: dict[str, Any]) -> None:
        if values["step"] == 2 and not failed:
            failed.append(values)
            raise SaveError("the disk is full")
        original(self, values)

    monkeypatch.setattr(RunFolder, "append_metrics", append)
    with pytest.raises(SaveError):
        go_on(run)
    assert go_on(run) == "finished"
    assert lora(run) == lora(straight)
    assert lines(run) == lines(straight)


def test_previews_of_steps_that_are_made_again_are_drawn_again(job_of: Jobs, root: Path) -> None:
    """Killed at step 5, whose checkpoints are lost but for the first; gone on with to an earlier end."""
    previews = {"prompts": ("a [trigger]",), "every": 2, "steps": 1}
    job = job_of(train={"steps": 6, "deterministic": True}, sample=previews, save={"every": 1})
    run = RunFolder.create(root, job)
    die(run, 5)
    assert sorted(path.name for path in (run.path / "samples").iterdir()) == ["step_00000002", "step_00000004"]
    for step in (4, 3, 2):
        shutil.rmtree(run.path / "checkpoints" / f"step_{step:08d}", ignore_errors=True)
    assert go_on(run, job=run.job().but(train=run.job().train.but(steps=2))) == "finished"
    assert [path.parent.name for path in run.sample_paths()] == ["step_00000002"]


# --- while it waits --------------------------------------------------------------------------------------------------


def test_a_job_that_is_edited_during_a_pause_is_not_lost(job_of: Jobs, root: Path) -> None:
    job = job_of(train={"steps": 3, "deterministic": True})
    run, events = RunFolder.create(root, job), []

    def listen(training: TrainingJob, event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 1:
            training.pause()
        if isinstance(event, StateChanged) and event.state == "paused":
            edited = (run.path / "job.yaml").read_text().replace("steps: 3", "steps: 5")
            (run.path / "job.yaml").write_text(edited)
            training.go_on()

    assert go_on(run, listen) == "finished"
    told = [event.message for event in events if isinstance(event, Warning) and "job.yaml" in event.message]
    assert len(told) == 1
    assert "steps: 5" in (run.path / "job.edited.yaml").read_text()


def test_refused_after_a_pause_is_paused_still(job_of: Jobs, root: Path, pictures: Path, tmp_path: Path) -> None:
    """Captions are changed during a pause: the run is what it was before, paused, and not `queued`."""
    own = shutil.copytree(pictures, tmp_path / "own")
    job = job_of(dataset={"folder": str(own)}, train={"steps": 3})
    run = RunFolder.create(root, job)

    def listen(training: TrainingJob, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            training.pause()
        if isinstance(event, StateChanged) and event.state == "paused":
            (own / "red.txt").write_text("something else")
            training.go_on()

    with pytest.raises(ResumeRefused, match="captions"):
        go_on(run, listen)
    assert str(run_state(run)) == "paused"
    assert run_state(run).resumable
    assert run_state(run).step == 1
    assert go_on(run, accept={"data"}) == "finished"


PHASES = ["scanning the data", "loading the base"]


@pytest.mark.parametrize("word", ["stop", "pause"])
@pytest.mark.parametrize("moment", [*PHASES, "state running", "first picture", "baseline", "last step", "last picture"])
def test_a_request_in_every_phase(moment: str, word: str, job_of: Jobs, root: Path, others: Path) -> None:
    """Whenever it is asked for, it is done soon, and the run ends as if it had not been asked for."""
    previews = {"prompts": ("a [trigger]", "a house"), "every": 2, "steps": 1, "before_training": True}
    datasets = [{}, {"folder": str(others), "role": "validation", "trigger": None}]
    job = job_of(datasets=datasets, train={"steps": 2, "deterministic": True}, sample=previews)
    job = job.but(validation={"every": 2, "draws": 1})
    straight, run = RunFolder.create(root, job), RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    asked: list[str] = []

    def listen(training: TrainingJob, event: Event) -> None:
        if _is(moment, event) and not asked:
            asked.append(word)
            training.stop() if word == "stop" else training.pause(leave=True)

    outcome = go_on(run, listen)
    assert asked
    if outcome != "finished":
        assert outcome == {"stop": "stopped", "pause": "paused"}[word]
        assert run.status()["state"] == outcome
        assert go_on(run) == "finished"
    assert lora(run) == lora(straight)
    assert lines(run) == lines(straight)
    assert pictures_of(run) == pictures_of(straight)


def _is(moment: str, event: Event) -> bool:
    name, step = type(event).__name__, getattr(event, "step", None)
    return {
        "state running": name == "StateChanged" and getattr(event, "state", "") == "running",
        "baseline": name == "ValidationDone" and step == 0,
        "first picture": name == "SampleReady" and step == 0,
        "last step": name == "StepDone" and step == 2,
        "last picture": name == "SampleReady" and step == 2,
    }.get(moment, isinstance(event, Phase) and event.what == moment)


# --- folders that move -----------------------------------------------------------------------------------------------


def test_copied_renamed_and_moved(job_of: Jobs, tmp_path: Path) -> None:
    """All of them go on, to the same end; a copy does not count as held because the original is."""
    job = job_of(train={"steps": 4, "deterministic": True}, save={"every": 1})
    straight, run = (RunFolder.create(tmp_path / "runs", job) for _ in range(2))
    assert go_on(straight) == "finished"
    copies: list[RunFolder] = []

    def listen(training: TrainingJob, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            copies.append(RunFolder(shutil.copytree(run.path, tmp_path / "elsewhere" / "läuft 走る \U0001f600")))
            assert str(run_state(copies[0])) == "stopped (crashed)"
            assert run_state(copies[0]).resumable
            training.stop()

    assert go_on(run, listen) == "stopped"
    renamed = RunFolder(run.path.rename(tmp_path / "runs" / ("n" * 255)))
    for one in (renamed, copies[0]):
        assert go_on(one) == "finished"
        assert lora(one) == lora(straight)
        assert lines(one) == lines(straight)


def test_relative_data_is_found_from_anywhere(
    job_of: Jobs, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job made with a relative folder; later job.yaml is damaged, and the program is somewhere else."""
    shutil.copytree(pictures, tmp_path / "here" / "set")
    monkeypatch.chdir(tmp_path / "here")
    training = TrainingJob.new(tmp_path / "runs", job_of(dataset={"folder": "set"}, train={"steps": 2}))
    run = training.run

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            training.stop()

    assert training.run_here(listen) == "stopped"
    (run.path / "job.yaml").write_text("name: [")
    monkeypatch.chdir("/")
    assert go_on(run) == "finished"


def test_a_run_folder_that_is_deleted_while_it_trains_does_not_come_back(job_of: Jobs, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", job_of(train={"steps": 4}))

    def listen(_: TrainingJob, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            shutil.rmtree(run.path)

    with pytest.raises(FoundryError):
        go_on(run, listen)
    assert not run.path.exists()
    assert DeviceQueue("cpu").tickets() == []


def test_a_name_too_long_for_the_disk_is_one_message(job_of: Jobs, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="name"):
        RunFolder.create(tmp_path / "runs", job_of(name="走" * 100))


# --- clocks, ends, starts --------------------------------------------------------------------------------------------


def test_the_clock_goes_backwards(job_of: Jobs, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(train={"steps": 4, "deterministic": True}, save={"every": 1, "keep": 2})
    straight, run = RunFolder.create(root, job), RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    die(run, 2)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() - 10 * 365 * 86400)
    assert go_on(run, stop_at(3)) == "stopped"
    monkeypatch.setattr(time, "time", lambda: true() - 20 * 365 * 86400)
    assert go_on(run) == "finished"
    assert lora(run) == lora(straight)
    assert lines(run) == lines(straight)
    assert [found.step for found in run.checkpoints()] == [3, 4]


def test_fewer_steps(job_of: Jobs, root: Path) -> None:
    """Fewer than were made is refused and changes nothing; as many end the run where it is."""
    job = job_of(train={"steps": 5})
    run = RunFolder.create(root, job)
    go_on(run, stop_at(3))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "log.txt"}
    with pytest.raises(ResumeRefused, match=r"train\.steps: is 2, but the run has made 3"):
        go_on(run, job=job.but(train=job.train.but(steps=2)))
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert {path for path in before if before[path] != after.get(path)} <= {run.path / "run.json"}
    assert run.status()["state"] == "stopped"
    assert (run.status()["step"], run.status()["steps"]) == (3, 5)
    whole = lora(run)
    assert go_on(run, job=job.but(train=job.train.but(steps=3))) == "finished"
    assert lora(run) == whole


def test_a_warm_start_is_needed_once(job_of: Jobs, root: Path, tmp_path: Path) -> None:
    """After the first checkpoint the file it began from may be gone."""
    first = RunFolder.create(root, job_of(train={"steps": 1}))
    assert go_on(first) == "finished"
    file = tmp_path / "start.safetensors"
    file.write_bytes(lora(first))
    job = job_of(adapter={"warm_start": str(file)}, train={"steps": 3, "deterministic": True})
    straight, run = RunFolder.create(root, job), RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    assert go_on(run, stop_at(1)) == "stopped"
    file.unlink()
    assert go_on(run) == "finished"
    assert lora(run) == lora(straight)
    assert go_on(run) == "finished"  # and once more
    assert lora(run) == lora(straight)


def test_damaged_newest_with_metrics_and_previews_beyond_it(job_of: Jobs, root: Path) -> None:
    previews = {"prompts": ("a [trigger]",), "every": 1, "steps": 1}
    job = job_of(train={"steps": 4, "deterministic": True}, sample=previews, save={"every": 1})
    straight, run = RunFolder.create(root, job), RunFolder.create(root, job)
    assert go_on(straight) == "finished"
    die(run, 4)
    state = run.path / "checkpoints" / "step_00000003" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    (run.path / "samples" / "step_00000003" / "00.png").write_bytes(b"half a pic")
    assert go_on(run) == "finished"
    assert lora(run) == lora(straight)
    assert lines(run) == lines(straight)
    assert pictures_of(run) == pictures_of(straight)


def test_the_state_folder_is_a_file(job_of: Jobs, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be written by anybody, root included: one warning, and the run trains."""
    (tmp_path / "state").write_text("in the way")
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path / "state"))
    told: list[Event] = []
    run = RunFolder.create(root, job_of(train={"steps": 1}))
    assert go_on(run, lambda _, event: told.append(event)) == "finished"
    assert len([event for event in told if isinstance(event, Warning) and "without the queue" in event.message]) == 1
