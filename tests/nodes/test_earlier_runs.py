"""Which earlier run Train LoRA goes on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

Pack = Callable[[str], ModuleType]
EMBEDDED = Path(__file__).parents[2] / "trainer_core" / "embedded" / "base"


@pytest.fixture(scope="module")
def core(pack: Pack) -> SimpleNamespace:
    names = ("job", "runs.run_folder", "runs.run_lock", "config", "errors")
    return SimpleNamespace(**{name.split(".")[-1]: pack(f"trainer_core.{name}") for name in names})


@pytest.fixture(scope="module")
def job_of(core: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    for name in ("red", "green"):
        Image.new("RGB", (64, 64), name).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} [trigger]", encoding="utf-8")

    def make(name: str = "run", dataset: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Any:
        job = {
            "model": {"source": "embedded", "device": "cpu", **sections.pop("model", {})},
            "adapter": {"rank": 2, **sections.pop("adapter", {})},
            "datasets": [{"folder": str(folder), "resolutions": (64,), "trigger": "zorble", **(dataset or {})}],
            "train": {"steps": 4, "gradient_checkpointing": False, **sections.pop("train", {})},
            "sample": {"before_training": False, "every": 1000, **sections.pop("sample", {})},
        }
        return core.config.JobConfig(name=name, **job, **sections)

    return make


@pytest.fixture(scope="module")
def finished(core: SimpleNamespace, job_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps; tests work on copies."""
    training = core.job.TrainingJob.new(tmp_path_factory.mktemp("runs"), job_of())
    training.run_here(lambda _: None)
    return training.run.path


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A runs folder with a copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path


@pytest.fixture
def found(pack: Pack) -> Callable[[Path, Any], str | None]:
    """The name of the run that a job goes on with."""

    def find(root: Path, job: Any) -> str | None:
        run = pack("nodes.earlier_runs").beginning(root, job, "start a new run").run
        return run.name if run else None

    return find


Found = Callable[[Path, Any], "str | None"]


@pytest.mark.parametrize("state", ["queued", "running", "paused", "stopped", "failed"])
def test_goes_on_with_what_was_stopped_or_killed(root: Path, job_of: Any, found: Found, state: str) -> None:
    says(root / "run", state)
    assert found(root, job_of(train={"steps": 9})) == "run"
    assert found(root, job_of(train={"steps": 4})) == "run"
    assert found(root, job_of(train={"steps": 3})) is None  # it has made more


def test_what_no_update_depends_on_may_have_changed(root: Path, job_of: Any, found: Found) -> None:
    says(root / "run", "stopped")
    assert found(root, job_of(sample={"prompts": ("another",)}, save={"every": 3, "keep": 2})) == "run"


def test_other_settings_are_another_run(root: Path, job_of: Any, found: Found) -> None:
    says(root / "run", "stopped")
    for train in ({"learning_rate": 0.5}, {"seed": 1}, {"deterministic": True}, {"lr_scheduler": "cosine"}):
        assert found(root, job_of(train=train)) is None
    assert found(root, job_of(dataset={"flip_x": True})) is None
    assert found(root, job_of(adapter={"rank": 3})) is None


def test_a_finished_run_gets_more_steps(root: Path, job_of: Any, found: Found) -> None:
    assert found(root, job_of(train={"steps": 5})) == "run"
    assert found(root, job_of(train={"steps": 3})) is None


def test_a_finished_run_of_the_same_job_is_not_made_again(root: Path, job_of: Any, found: Found) -> None:
    """ComfyUI may have been closed between the training and what came after it."""
    assert found(root, job_of()) == "run"
    assert found(root, job_of(sample={"prompts": ("another",)})) is None


def test_a_rate_that_falls_towards_the_end_cannot_be_prolonged(
    core: SimpleNamespace, tmp_path: Path, job_of: Any, found: Found
) -> None:
    falling = {"lr_scheduler": "linear", "steps": 2}
    core.job.TrainingJob.new(tmp_path, job_of(train=falling)).run_here(lambda _: None)
    assert found(tmp_path, job_of(train={**falling, "steps": 3})) is None
    says(tmp_path / "run", "stopped")
    assert found(tmp_path, job_of(train={**falling, "steps": 3})) is None
    assert found(tmp_path, job_of(train=falling)) == "run"


def test_other_pictures_are_another_run(root: Path, job_of: Any, found: Found, tmp_path_factory: Any) -> None:
    says(root / "run", "stopped")
    (here,) = job_of().datasets
    copy = tmp_path_factory.mktemp("elsewhere") / "pictures"
    shutil.copytree(here.folder, copy)
    assert found(root, job_of(dataset={"folder": str(copy)})) == "run"  # the same ones, moved
    (copy / "red.txt").write_text("a crimson [trigger]", encoding="utf-8")
    assert found(root, job_of(dataset={"folder": str(copy)})) is None


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_other_weights_are_another_run(root: Path, job_of: Any, found: Found, tmp_path: Path, part: str) -> None:
    says(root / "run", "stopped")
    base = tmp_path / "base"
    shutil.copytree(EMBEDDED, base)
    assert found(root, job_of(model={"source": str(base)})) == "run"  # the same ones, copied
    (file,) = (base / part).glob("*.safetensors")
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    assert found(root, job_of(model={"source": str(base)})) is None


def test_a_run_without_a_checkpoint_goes_on_too(root: Path, job_of: Any, found: Found) -> None:
    shutil.rmtree(root / "run" / "checkpoints")
    says(root / "run", "running")
    assert found(root, job_of()) == "run"
    assert found(root, job_of(train={"seed": 1})) is None
    says(root / "run", "finished")
    assert found(root, job_of()) is None


def test_another_name_is_another_run(root: Path, job_of: Any, found: Found) -> None:
    """Names of folders begin alike: a run's own is in its job."""
    says(root / "run", "stopped")
    (root / "run").rename(root / "run_portrait")
    assert found(root, job_of("run")) == "run_portrait"
    assert found(root, job_of("run_portrait")) is None


def test_the_latest_of_several_goes_on(root: Path, job_of: Any, found: Found) -> None:
    shutil.copytree(root / "run", root / "run_2")
    for name in ("run_2", "run"):
        says(root / name, "stopped")
    assert found(root, job_of()) == "run"
    says(root / "run_2", "stopped")
    assert found(root, job_of()) == "run_2"
    (root / "run_2" / "job.yaml").write_text("{", encoding="utf-8")
    shutil.rmtree(root / "run_2" / "checkpoints")
    assert found(root, job_of()) == "run"  # what cannot be read is passed over


def test_a_run_that_somebody_works_on_is_named(core: SimpleNamespace, root: Path, job_of: Any, found: Found) -> None:
    says(root / "run", "running")
    with core.run_lock.RunLock(root / "run"):
        with pytest.raises(core.errors.RunHeld, match=r"'run' has these settings, and process \d+ .*continue_stopped"):
            found(root, job_of())
        assert found(root, job_of(train={"seed": 1})) is None
    assert found(root, job_of()) == "run"


def test_an_unfinished_run_that_differs_is_asked_about(
    core: SimpleNamespace, pack: Pack, root: Path, job_of: Any
) -> None:
    begin = pack("nodes.earlier_runs").beginning
    says(root / "run", "stopped")
    rate, rank = job_of(train={"steps": 9, "learning_rate": 0.5}), job_of(adapter={"rank": 3})
    with pytest.raises(core.errors.ResumeRefused, match=r"train.learning_rate: was 0.0001, is 0.5") as refused:
        begin(root, rate, "ask")
    assert "'run' is not finished (stopped at step 4)" in str(refused.value)
    assert "go on with the new values" in str(refused.value)
    for choice in ("ask", "go on with the new values"):
        with pytest.raises(core.errors.ResumeRefused, match=r"adapter\.rank: was 2, is 3") as refused:
            begin(root, rank, choice)
        assert "cannot go on with another adapter.rank" in str(refused.value)
    for job, told in ((rate, "train.learning_rate was 0.0001, is 0.5"), (rank, "adapter.rank was 2, is 3")):
        new = begin(root, job, "start a new run")
        assert new.run is None
        assert told in new.why_new


def test_a_changed_rate_is_gone_on_with_by_choice(core: SimpleNamespace, pack: Pack, root: Path, job_of: Any) -> None:
    says(root / "run", "stopped")
    job = job_of(train={"steps": 5, "learning_rate": 0.5})
    begins = pack("nodes.earlier_runs").beginning(root, job, "go on with the new values")
    assert begins.run.name == "run"
    assert core.job.TrainingJob(begins.run, job, begins.accept).run_here(lambda _: None) == "finished"
    assert [(line["step"], line["lr"]) for line in begins.run.metrics()][3:] == [(4, 0.0001), (5, 0.5)]


def test_a_finished_run_that_differs_is_told_of(pack: Pack, root: Path, job_of: Any) -> None:
    begins = pack("nodes.earlier_runs").beginning(root, job_of(train={"seed": 1}), "ask")
    assert begins.run is None
    assert begins.why_new == "run (finished) has other settings: train.seed was 42, is 1"


def test_no_runs_folder_yet(tmp_path: Path, job_of: Any, found: Found) -> None:
    assert found(tmp_path / "none", job_of()) is None


def says(run: Path, state: str) -> None:
    """Makes run.json say a state; the folder counts as touched."""
    path = run / "run.json"
    status = {**json.loads(path.read_text(encoding="utf-8")), "state": state}
    path.unlink()
    path.write_text(json.dumps(status), encoding="utf-8")
