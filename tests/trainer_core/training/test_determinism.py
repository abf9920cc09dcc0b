"""The same seed gives the same file, byte for byte; looking on does not change it, nothing global is touched."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from trainer_core.config import JobConfig, dump_job
from trainer_core.errors import TrainingError
from trainer_core.families.flux1.model import Flux
from trainer_core.families.sources import source as sources
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, SampleReady, StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.sampling.preview import preview

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]
PREVIEWS = {"prompts": ("a [trigger]", "a green cat"), "every": 1, "before_training": True}
EVERYTHING: dict[str, Any] = {
    "dataset": {"flip_x": True, "crop": "random", "caption_dropout": 0.3, "shuffle_tags": True},
    "adapter": {"dropout": 0.2, "alpha": 1.0},
    "train": {"steps": 4, "batch_size": 2, "gradient_accumulation": 2, "ema_decay": 0.9, "stage_boundaries": (0.5,)},
}
"""A job in which all that draws numbers is on."""


def lora(training: TrainingJob) -> bytes:
    latest = training.run.latest()
    assert latest is not None
    return latest.lora.read_bytes()


def weights(training: TrainingJob) -> dict[str, torch.Tensor]:
    return load(lora(training))


@pytest.fixture
def several_threads() -> Iterator[None]:
    """As a user's run has them, also where the tests' processes have one thread each."""
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("several_threads")
def test_the_same_seed_gives_the_same_bytes(job_of: Jobs, train: Train, tmp_path: Path) -> None:
    """From a full cache and from an empty one, whatever the global generators stand at."""
    first = train(job_of(**EVERYTHING))
    random.seed(1), np.random.seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert lora(train(job_of(**EVERYTHING))) == lora(first)
    assert lora(train(job_of(**EVERYTHING), root=tmp_path / "elsewhere")) == lora(first)


def test_another_seed_gives_other_weights(job_of: Jobs, train: Train) -> None:
    one, other = weights(train(job_of())), weights(train(job_of(train={"seed": 43})))
    for name, value in one.items():
        if not name.endswith(".alpha"):
            assert not torch.equal(value, other[name]), name


def trained_elsewhere(job: JobConfig, folder: Path, hash_seed: str) -> bytes:
    """The LoRA file of a job that another process runs, with an empty cache."""
    folder.mkdir()
    (folder / "job.yaml").write_text(dump_job(job), encoding="utf-8")
    code = (
        "import sys, torch; from pathlib import Path\n"
        "import trainer_core.families.sources as sources\n"
        "from trainer_core.config import load_job\n"
        "from trainer_core.job import TrainingJob\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "sources.EMBEDDED = Path(sys.argv[2])\n"
        "training = TrainingJob.new(Path(sys.argv[1]), load_job(Path(sys.argv[1]) / 'job.yaml'))\n"
        "training.run_here(lambda event: None)\n"
        "print(training.run.latest().lora)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(sources.EMBEDDED)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Path(done.stdout.strip().splitlines()[-1]).read_bytes()


@pytest.mark.usefixtures("several_threads")
def test_another_process_gives_the_same_bytes(job_of: Jobs, train: Train, tmp_path: Path) -> None:
    job = job_of(**EVERYTHING)
    assert trained_elsewhere(job, tmp_path / "elsewhere", "1") == lora(train(job))


def test_two_processes_in_deterministic_mode_give_the_same_bytes(job_of: Jobs, train: Train, tmp_path: Path) -> None:
    """And the file says so. On a CPU the mode takes the algorithms that are taken anyway."""
    job = in_mode(job_of(**EVERYTHING))
    one, other = (trained_elsewhere(job, tmp_path / name, name) for name in ("1", "2"))
    assert one == other
    assert told(one) == "yes"
    plain = train(job_of(**EVERYTHING))
    assert told(lora(plain)) == "yes"
    assert all(torch.equal(value, load(one)[name]) for name, value in weights(plain).items())


def test_a_cache_filled_on_more_threads_changes_no_bit_in_deterministic_mode(
    job_of: Jobs, train: Train, tmp_path: Path
) -> None:
    """The VAE's sums depend on the number of threads, and the cache keeps what it was given first."""
    job, count = in_mode(job_of(train={"steps": 1})), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train(job, root=tmp_path / "shared")
        torch.set_num_threads(1)
        assert lora(train(job, root=tmp_path / "shared")) == lora(train(job, root=tmp_path / "alone"))
    finally:
        torch.set_num_threads(count)


def test_a_resumed_run_in_deterministic_mode_gives_the_same_bytes(job_of: Jobs, train: Train, tmp_path: Path) -> None:
    job = in_mode(job_of(**EVERYTHING))
    run = RunFolder.create(tmp_path / "runs", job)
    for step in (1, 3):
        assert stopped_at(step, run) == "stopped"
    assert TrainingJob(run).run_here(lambda _: None) == "finished"
    latest = run.latest()
    assert latest is not None
    assert latest.lora.read_bytes() == lora(train(job))


def test_what_was_not_deterministic_is_in_the_file(
    job_of: Jobs, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base with an operation that has no deterministic algorithm; a resumed run still tells it."""
    spoil(monkeypatch)
    job = job_of()
    whole = lora(train(job))
    assert told(whole) == "no: put_ has no deterministic algorithm here"
    run = RunFolder.create(tmp_path / "runs", job)
    assert stopped_at(1, run) == "stopped"
    monkeypatch.undo()
    assert TrainingJob(run).run_here(lambda _: None) == "finished"
    assert told(lora(TrainingJob(run))) == "no: put_ has no deterministic algorithm here"


def test_the_mode_refuses_what_is_not_deterministic(
    job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    run = RunFolder.create(tmp_path / "runs", in_mode(job_of()))
    before = settings()
    with pytest.raises(TrainingError, match=r"put_ .* train\.deterministic off"):
        TrainingJob(run).run_here(lambda _: None)
    assert settings() == before
    assert run.status()["state"] == "failed"
    assert "put_" in run.status()["error"]


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_the_mode_ends_with_the_run(end: str, job_of: Jobs, tmp_path: Path) -> None:
    """And is there while it trains, on whichever thread."""
    run, before, inside = RunFolder.create(tmp_path / "runs", in_mode(job_of())), settings(), []
    training = TrainingJob(run)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            inside.append(torch.are_deterministic_algorithms_enabled())
            if end == "stopped":
                training.stop()
            if end == "failed":
                raise TrainingError("enough")

    if end == "failed":
        with pytest.raises(TrainingError, match="enough"):
            training.run_here(listen)
    else:
        training.run_here(listen)
    assert training.outcome == end
    assert inside == [True] * (3 if end == "finished" else 1)
    assert settings() == before


def in_mode(job: JobConfig) -> JobConfig:
    return job.but(train={**job.train.model_dump(mode="json"), "deterministic": True})


def stopped_at(step: int, run: RunFolder) -> str:
    training = TrainingJob(RunFolder.open(run.path))

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            training.stop()

    return training.run_here(listen)


def told(file: bytes) -> str:
    length = int.from_bytes(file[:8], "little")
    text: str = json.loads(file[8 : 8 + length])["__metadata__"]["lora_foundry.deterministic"]
    return text


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the base's predictions pass an operation that has no deterministic algorithm, and changes no number."""
    original = Flux.predict

    def predict(*args: Any, **kwargs: Any) -> torch.Tensor:
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))
        return original(*args, **kwargs)

    monkeypatch.setattr(Flux, "predict", predict)


def test_previews_do_not_change_training(job_of: Jobs, train: Train) -> None:
    plain, watched = train(job_of(**EVERYTHING)), train(job_of(**EVERYTHING, sample=PREVIEWS))
    assert len(list((watched.run.path / "samples").rglob("*.png"))) == 10
    one, other = weights(plain), weights(watched)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_how_often_is_saved_and_logged_changes_nothing(job_of: Jobs, train: Train) -> None:
    one, other = weights(train(job_of())), weights(train(job_of(save={"every": 1}, train={"log_every": 3})))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_place_and_name_of_the_folder_change_nothing(
    job_of: Jobs, train: Train, pictures: Path, tmp_path: Path
) -> None:
    import shutil

    moved = shutil.copytree(pictures, tmp_path / "moved" / pictures.name)
    assert lora(train(job_of())) == lora(train(job_of(dataset={"folder": str(moved)})))


def test_global_random_state_is_as_it_was(job_of: Jobs, train: Train) -> None:
    """Through a whole run: loading, injecting, dropout, previews, checkpointing, saving."""
    job = job_of(**{**EVERYTHING, "train": {"steps": 2, "gradient_checkpointing": True}}, sample=PREVIEWS)
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), numpys_state()
    when: dict[str, Event] = {}

    def listen(event: Event) -> None:
        if not torch.equal(torch.get_rng_state(), torch_state):
            when.setdefault("first seen changed at", event)

    train(job, listen)
    assert when == {}
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert numpys_state() == numpy_state


def numpys_state() -> list[int]:
    state: Any = np.random.get_state()
    numbers: list[int] = state[1].tolist()
    return numbers


def settings() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_warn_always_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.is_inference_mode_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_global_settings_are_as_they_were(job_of: Jobs, train: Train) -> None:
    """ComfyUI goes on in the same process: gradients, default dtype, threads, TF32 …"""

    before = settings()
    train(job_of(sample=PREVIEWS))
    assert settings() == before


def test_a_preview_of_the_run_is_what_preview_draws(job_of: Jobs, train: Train) -> None:
    """The picture beside a checkpoint and the one drawn from its LoRA: the same, but for the last bit of a pixel."""
    from PIL import Image

    job = job_of(sample={"prompts": ("a [trigger]", "a green cat"), "steps": 4})
    pictures: list[Path] = []
    training = train(job, lambda event: pictures.append(event.path) if isinstance(event, SampleReady) else None)
    latest = training.run.latest()
    assert latest is not None
    drawn = preview(job.model, ["a zorble", "a green cat"], lora=latest.lora, sample=job.sample)
    assert len(pictures) == len(drawn) == 2
    for path, picture in zip(pictures, drawn, strict=True):
        difference = np.asarray(Image.open(path)).astype(int) - np.asarray(picture).astype(int)
        assert abs(difference).max() <= 1
