"""The one door, used as its own page says: nothing but it, settings and errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core import api
from trainer_core.config import JobConfig
from trainer_core.errors import ConfigError, DatasetError, ResumeRefused, RunError

Jobs = Callable[..., JobConfig]


def test_everything_that_it_offers_says_what_it_is() -> None:
    offered = {
        name: value for name, value in vars(api).items() if "trainer_core" in str(getattr(value, "__module__", ""))
    }
    assert len(offered) > 50
    assert [name for name, value in offered.items() if not value.__doc__] == []


def test_from_a_folder_of_pictures_to_a_drawing(job_of: Jobs, tmp_path: Path) -> None:
    job = job_of(train={"steps": 2})
    summary = api.inspect_dataset(job.datasets[0])
    assert (summary.count, summary.captions[0]) == (4, ("blue.png", "a blue zorble"))
    assert api.lint_job(job, tokenizers=()).ok
    api.check_job(job)
    assert api.beginning(tmp_path, job, api.ASK) == api.Beginning()

    run = api.new_run(tmp_path, job)
    run.start()
    events = []
    while run.alive:
        events += run.events()
        time.sleep(0.01)
    run.join()
    events += run.events()
    assert run.outcome == "finished"
    assert [event.step for event in events if isinstance(event, api.StepDone)] == [1, 2]
    assert [found.name for found in api.runs_in(tmp_path)] == ["tiny"]
    assert api.run_state(api.find_run("tiny", tmp_path)).state == "finished"

    longer = job_of(train={"steps": 3})
    begins = api.beginning(tmp_path, longer, api.ASK)
    assert begins.run is not None
    resumed = api.resume_run(begins.run, longer, begins.accept)
    steps: list[int] = []
    assert resumed.run_here(lambda event: steps.append(event.step) if isinstance(event, api.StepDone) else None)
    assert steps == [3]

    lora = api.find_lora("tiny", tmp_path)
    assert (lora.name, lora.trigger, lora.model) == ("tiny", "zorble", job.model.but(family="flux1"))
    assert api.describe_lora(lora.path)["trigger"] == "zorble"
    drawing = {"settings": lora.sample.but(width=64, height=64), "lora": lora.path}
    (picture,) = api.sample(lora.model, ["a zorble"], **drawing)
    assert picture.size == (64, 64)


def test_a_run_is_asked_to_stop_and_goes_on(job_of: Jobs, tmp_path: Path) -> None:
    job = job_of(train={"steps": 2000})
    run = api.new_run(tmp_path, job)

    def listen(event: api.Event) -> None:
        if isinstance(event, api.StepDone) and event.step == 2:
            api.ask_run(run.run.path, api.STOP)

    assert run.run_here(listen) == "stopped"
    assert api.run_state(run.run).resumable
    step = api.find_checkpoint(run.run).step
    changed = api.changed_job(job, ["train.learning_rate=0.5", f"train.steps={step + 1}"])
    with pytest.raises(ResumeRefused) as refused:
        api.beginning(tmp_path, changed, api.ASK)
    assert refused.value.changed.keys() == {"train.learning_rate"}
    accept = api.accepted_by(run.run, ["train.learning_rate=0.5", f"train.steps={step + 1}"])
    assert api.resume_run(run.run, changed, accept).run_here(lambda _: None) == "finished"


def test_runs_that_wait_are_found(job_of: Jobs, tmp_path: Path) -> None:
    first, second = (api.queue_run(tmp_path, job_of(name)) for name in ("one", "two"))
    assert [place for _, _, place in (first, second)] == [1, 2]
    assert [(one.run, problem) for _, one, problem in api.waiting_alone()] == [
        ((tmp_path / name).resolve(), None) for name in ("one", "two")
    ]
    queue, waiting = api.find_waiting("two", tmp_path)
    queue.move(waiting.run, 1)
    (tmp_path / "one" / "run.json").unlink()
    assert [(one.run.name, problem) for _, one, problem in api.waiting_alone()] == [("two", None), ("one", "gone")]


def test_what_is_wrong_is_told_before_anything_is_made(job_of: Jobs, tmp_path: Path) -> None:
    for job, error in (
        (job_of(dataset={"folder": str(tmp_path / "none")}), DatasetError),
        (job_of(sample={"width": 65}), ConfigError),
    ):
        with pytest.raises(error):
            api.check_job(job)
        with pytest.raises(error):
            api.queue_run(tmp_path / "runs", job)
    assert not (tmp_path / "runs").exists()
    assert api.queues() == []
    with pytest.raises(RunError, match="no run 'tiny'"):
        api.find_lora("tiny", tmp_path / "runs")
