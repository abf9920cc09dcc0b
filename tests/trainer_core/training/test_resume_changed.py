"""A run that goes on with other settings: what may change changes no weight, what may not leaves all as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from trainer_core import content
from trainer_core.config import JobConfig
from trainer_core.data.cache import CACHE_FOLDER, TensorCache
from trainer_core.errors import ResumeRefused
from trainer_core.families.registry import open_base
from trainer_core.families.sources import diffusers_folder
from trainer_core.families.sources import source as sources
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StepDone, Warning
from trainer_core.runs.run_folder import RunFolder
from trainer_core.safetensors_file import read_header, read_tensors, serialize
from trainer_core.training import session
from trainer_core.training.resume_rules import DATA, sampled_hashes

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]


@pytest.fixture
def stopped(job_of: Jobs, tmp_path: Path, pictures: Path) -> RunFolder:
    """A run of 4 steps that stands at step 2, on a copy of the pictures."""
    folder = shutil.copytree(pictures, tmp_path / "mine")
    dataset = {"folder": str(folder), "flip_x": True, "caption_dropout": 0.3}
    job = job_of(dataset=dataset, adapter={"dropout": 0.2}, train={"steps": 4, "batch_size": 2})
    run = RunFolder.create(tmp_path / "runs", job)
    training = TrainingJob(run)
    assert training.run_here(lambda event: _stop_at(2, training, event)) == "stopped"
    return run


def _stop_at(step: int, training: TrainingJob, event: Event) -> None:
    if isinstance(event, StepDone) and event.step == step:
        training.stop()


def adapter(run: RunFolder) -> dict[str, torch.Tensor]:
    latest = run.latest()
    assert latest is not None
    return {name: value for name, value in load(latest.state.read_bytes()).items() if name.startswith("adapter.")}


def test_what_may_change_changes_no_weight(stopped: RunFolder, train: Train, tmp_path: Path) -> None:
    """All at once: the run that goes on so ends with the weights of one that never changed."""
    job = stopped.job()
    straight = adapter(train(job, root=tmp_path / "straight").run)
    moved, base = tmp_path / "moved", tmp_path / "base"
    Path(job.datasets[0].folder).rename(moved)
    for caption in moved.glob("*.txt"):
        caption.rename(caption.with_suffix(".caption"))
    shutil.copytree(sources.EMBEDDED, base)
    changed = JobConfig.model_validate(
        {
            **job.model_dump(mode="json"),
            "name": "other",
            "model": {**job.model.model_dump(), "source": str(base)},
            "adapter": {**job.adapter.model_dump(), "warm_start": "gone.safetensors"},
            "datasets": [job.datasets[0].but(folder=str(moved), caption_extension="caption").model_dump(mode="json")],
            "train": {
                **job.train.model_dump(mode="json"),
                "gradient_checkpointing": True,
                "skip_limit": 1,
                "log_every": 2,
            },
            "save": {"every": 1, "keep": 2, "dtype": "bfloat16"},
            "sample": {"prompts": ["a green [trigger]"], "every": 1, "steps": 1},
            "cache": {"limit_gb": 1},
        }
    )
    warnings: list[str] = []
    training = TrainingJob(stopped, changed)
    training.run_here(lambda event: warnings.append(event.message) if isinstance(event, Warning) else None)
    assert training.outcome == "finished"
    assert not any("from step" in message for message in warnings)
    ended = adapter(stopped)
    assert ended.keys() == straight.keys()
    assert all(torch.equal(value, straight[name]) for name, value in ended.items())


def test_a_refused_change_leaves_the_run_as_it_was(stopped: RunFolder) -> None:
    before = adapter(stopped)
    job = stopped.job()
    with pytest.raises(ResumeRefused, match=r"train\.batch_size: was 2, is 4"):
        TrainingJob(stopped, job.but(train={**job.train.model_dump(mode="json"), "batch_size": 4})).run_here(print)
    after = adapter(stopped)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert TrainingJob(RunFolder.open(stopped.path)).run_here(lambda _: None) == "finished"


def test_a_changed_caption_is_refused_and_can_be_accepted(stopped: RunFolder) -> None:
    next(Path(stopped.job().datasets[0].folder).glob("*.txt")).write_text("a purple [trigger]", encoding="utf-8")
    with pytest.raises(ResumeRefused, match=r"data: .*captions in .*mine are not the same"):
        TrainingJob(stopped).run_here(lambda _: None)
    events: list[Event] = []
    assert TrainingJob(stopped, accept={DATA}).run_here(events.append) == "finished"
    assert any("from step 3 on" in event.message for event in events if isinstance(event, Warning))
    latest = stopped.latest()
    assert latest is not None
    header = latest.lora.read_bytes()[:20_000]
    assert b"no: settings, data or environment changed after step 2" in header
    assert b"mine are" not in header


def deterministic(run: RunFolder) -> str:
    latest = run.latest()
    assert latest is not None
    return str(read_header(latest.lora)["__metadata__"]["lora_foundry.deterministic"])


def encoding_as(patch: pytest.MonkeyPatch, who: str) -> None:
    patch.setattr(session, "environment", lambda _: {"torch": who})


def test_pictures_that_are_encoded_again_elsewhere_are_told(
    stopped: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is cleared while the run stands, and another one fills it in another environment before it goes on."""
    again = Path(shutil.copytree(tmp_path / "runs", tmp_path / "again"))
    TensorCache(again / CACHE_FOLDER).clear()
    assert TrainingJob(RunFolder.open(again / "tiny")).run_here(lambda _: None) == "finished"
    assert deterministic(RunFolder.open(again / "tiny")) == "yes", "encoded again in the same environment"

    TensorCache(tmp_path / "runs" / CACHE_FOLDER).clear()
    with monkeypatch.context() as patch:
        encoding_as(patch, "another")
        assert TrainingJob.new(tmp_path / "runs", stopped.job().but(name="other")).run_here(lambda _: None)
    warnings: list[str] = []
    training = TrainingJob(stopped)
    training.run_here(lambda event: warnings.append(event.message) if isinstance(event, Warning) else None)
    assert training.outcome == "finished"
    (warning,) = warnings
    assert "from step 3 on" in warning
    assert "encoded again in another environment" in warning
    assert "settings, data or environment changed after step 2" in deterministic(stopped)


def test_a_cache_that_another_environment_filled_makes_no_run_reproducible(
    job_of: Jobs, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        encoding_as(patch, "another")
        assert deterministic(train(job_of(train={"steps": 1})).run) == "yes"
    assert "came from the cache" in deterministic(train(job_of(train={"steps": 1})).run)
    asked = train(job_of(train={"steps": 1, "deterministic": True})).run
    assert deterministic(asked) == "yes", "such a run takes entries of its own environment only"


def with_base(stopped: RunFolder, folder: Path) -> JobConfig:
    job = stopped.job()
    return job.but(model={**job.model.model_dump(), "source": str(shutil.copytree(sources.EMBEDDED, folder))})


def edited(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def test_a_base_that_says_another_schedule_is_refused(stopped: RunFolder, tmp_path: Path) -> None:
    job = with_base(stopped, tmp_path / "base")
    edited(tmp_path / "base" / "scheduler" / "scheduler_config.json", shift=1.0)
    with pytest.raises(ResumeRefused, match=r"shift was 3\.0, is 1\.0 \(scheduler_config\.json\)"):
        TrainingJob(stopped, job).run_here(lambda _: None)
    edited(tmp_path / "base" / "scheduler" / "scheduler_config.json", shift=3.0)
    edited(tmp_path / "base" / "foundry.json", timestep_type="linear")
    with pytest.raises(ResumeRefused, match=r'timestep_type was "shift", is "linear" \(foundry\.json\)'):
        TrainingJob(stopped, job).run_here(lambda _: None)
    edited(tmp_path / "base" / "foundry.json", timestep_type="shift", sampling={"steps": 3})
    assert TrainingJob(stopped, job).run_here(lambda _: None) == "finished", "previews do not train"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded denoiser and VAE count as large files."""
    monkeypatch.setattr(diffusers_folder, "LARGE", 1 << 20)


@pytest.mark.usefixtures("large")
def test_a_checkpoint_from_when_weights_were_sampled_goes_on(job_of: Jobs, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", job_of(train={"steps": 4}))
    training = TrainingJob(run)
    training.run_here(lambda event: _stop_at(2, training, event))
    latest = run.latest()
    assert latest is not None
    metadata = read_header(latest.state)["__metadata__"]
    old = {
        name.removesuffix("_sampled"): value for name, value in sampled_hashes(open_base(training.job.model)).items()
    }
    assert not {old["base_hash"], old["encoders_hash"]} & {metadata["base_hash"], metadata["encoders_hash"]}
    new = {"base_settings", "encoded_by"}
    then = {name: value for name, value in {**metadata, **old}.items() if name not in new}
    files = {
        "lora.safetensors": latest.lora.read_bytes(),
        "state.safetensors": serialize(read_tensors(latest.state), then),
    }
    run.save_checkpoint(2, files)
    events: list[Event] = []
    assert TrainingJob(run).run_here(events.append) == "finished"
    assert not [event for event in events if isinstance(event, Warning)]


@pytest.mark.usefixtures("large")
def test_a_training_reads_each_large_file_whole_once(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(train={"steps": 1})
    base = Path(shutil.copytree(sources.EMBEDDED, tmp_path / "base"))
    read: list[str] = []
    hashed = content._hashed
    monkeypatch.setattr(content, "_known", {})
    monkeypatch.setattr(content, "_hashed", lambda path, spans: (read.append(path.parent.name), hashed(path, spans))[1])
    for file in base.rglob("*.safetensors"):
        os.utime(file, (1e9, 1e9))
    for _ in range(2):
        TrainingJob.new(tmp_path / "runs", job.but(model={**job.model.model_dump(), "source": str(base)})).run_here(
            print
        )
        content._known.clear()  # as in the next process
    assert sorted(read) == ["transformer", "vae"]
