"""What a user who owns checkpoint files does from the command line, and what goes wrong: one message, and a field."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from trainer_core.cli import main
from trainer_core.config import JobConfig
from trainer_core.errors import FoundryError
from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.stable_diffusion.layouts import SD1, SDXL
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StepDone
from trainer_core.runs.run_folder import RunFolder

from .checkpoints import write_checkpoint, write_parts
from .small_models import SMALL

Write = Callable[..., Path]
Answer = Callable[..., str]

LAYOUTS = {"sd15": SD1, "sdxl": SDXL, "flux1": FLUX1}
LAST = "checkpoints/step_00000001/lora.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: models, four pictures, and a run of each family."""
    root = tmp_path_factory.mktemp("user")
    for name, make in SMALL.items():
        make(root / name)
        write_checkpoint(root / name, LAYOUTS[name], root / f"{name}.safetensors")
        write_parts(root / name, LAYOUTS[name], root / f"{name}_parts")
    (root / "images").mkdir()
    for k in range(2):
        Image.new("RGB", (64, 64), (90 * k, 20, 60)).save(root / "images" / f"{k}.png")
        (root / "images" / f"{k}.txt").write_text("a [trigger]", encoding="utf-8")
    return root


@pytest.fixture
def write(home: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a job, with settings as `section.field=value`."""
    monkeypatch.chdir(home)

    def made(name: str, family: str, source: str, **changed: Any) -> Path:
        job: dict[str, Any] = {
            "name": name,
            "model": {"family": family, "source": source, "device": "cpu"},
            "adapter": {"rank": 2},
            "datasets": [{"folder": "images", "resolutions": [64], "trigger": "zorble"}],
            "train": {"steps": 1},
        }
        for section, values in changed.items():
            job.setdefault(section, {}).update(values)
        path = home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job), encoding="utf-8")
        return path

    return made


@pytest.fixture
def refused(write: Write, home: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    """The message with which a job is refused, before there is a run."""

    def message(*given: Any, **changed: Any) -> str:
        shutil.rmtree(home / "runs" / "wrong", ignore_errors=True)
        assert main(["train", str(write("wrong", *given, **changed)), "--no-queue"]) == 1
        assert not (home / "runs" / "wrong").exists()
        told = capsys.readouterr().err.strip()
        assert "unexpected" not in told
        assert len(told.splitlines()) == 1
        return told

    return message


def trained(home: Path, job: Path) -> Path:
    """The LoRA file of a job that is trained, or was before."""
    run = home / "runs" / job.stem
    if not run.exists():
        assert main(["train", str(job), "--no-queue"]) == 0
    return run / LAST


# --- what does not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_family_without_a_source_is_told_what_to_name(family: str, refused: Answer) -> None:
    told = refused(family, "embedded")
    assert "model.source" in told
    assert "embedded base" in told
    assert "model.family" in told


@pytest.mark.parametrize(
    ("family", "source"), [("sdxl", "sd15"), ("sd15", "sdxl"), ("flux1", "sdxl"), ("sd15", "flux1"), ("sdxl", "images")]
)
def test_a_folder_of_another_family(family: str, source: str, refused: Answer) -> None:
    assert "model.source: " in refused(family, source)


@pytest.mark.parametrize("source", ["sd15.safetensors", "sdxl_parts/unet.safetensors", "images/0.png", "sdxl/unet"])
def test_a_file_of_something_else(source: str, refused: Answer) -> None:
    assert "model.source: " in refused("sdxl", source, model={"tokenizers": "sdxl"})


@pytest.mark.parametrize(
    ("family", "field", "file", "word"),
    [
        ("sdxl", "text_encoder", "sdxl_parts/text_encoder_2.safetensors", "another model"),
        ("sdxl", "text_encoder_2", "sd15_parts/text_encoder.safetensors", "text_encoder_2"),
        ("sd15", "text_encoder", "sdxl_parts/text_encoder_2.safetensors", "another model"),
        ("flux1", "text_encoder", "sdxl_parts/text_encoder.safetensors", "another model"),
        ("sdxl", "text_encoder", "sdxl/text_encoder", "is a folder"),
        ("sdxl", "vae", "images/0.png", "no safetensors|not a safetensors"),
    ],
)
def test_a_part_of_another_model(family: str, field: str, file: str, word: str, refused: Answer) -> None:
    told = refused(family, f"{family}.safetensors", model={"tokenizers": family, field: file})
    assert f"model.files.{field}" in told
    assert any(one in told for one in word.split("|"))


def test_the_embedded_base_takes_no_parts(refused: Answer) -> None:
    told = refused("flux1", "embedded", model={"text_encoder": "flux1_parts/text_encoder.safetensors"})
    assert "model.files.text_encoder" in told


def test_tokenizers_that_are_not_there_are_told_before_anything_is_made(refused: Answer) -> None:
    assert "model.tokenizers" in refused("sdxl", "sdxl.safetensors")
    assert "model.tokenizers" in (told := refused("sdxl", "sdxl.safetensors", model={"tokenizers": "images"}))
    assert "images" in told


def test_all_clips_cut_texts_alike(write: Write, home: Path) -> None:
    job = write("one_tokenizer", "sdxl", "sdxl.safetensors", model={"tokenizers": "sd15"})
    usual = write("usual", "sdxl", "sdxl.safetensors", model={"tokenizers": "sdxl"})
    first, second = (load_file(trained(home, one)) for one in (job, usual))
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize(
    ("train", "adapter", "field"),
    [
        ({"timestep_type": "shift"}, {}, "train.timestep_type"),
        ({"optimizer": "prodigy", "text_encoder_lr": 0.5}, {"text_encoders": True}, "train.text_encoder_lr"),
        ({}, {"warm_start": "sdxl.safetensors"}, "adapter.warm_start: "),
        ({}, {"warm_start": "images"}, "adapter.warm_start: "),
        ({}, {"warm_start": "nowhere.safetensors"}, "adapter.warm_start: "),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_is_made(
    train: dict[str, Any], adapter: dict[str, Any], field: str, refused: Answer
) -> None:
    assert field in refused("sdxl", "sdxl.safetensors", model={"tokenizers": "sdxl"}, train=train, adapter=adapter)


def test_a_warm_start_from_another_base_names_the_field_and_the_file(
    write: Write, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = trained(home, write("of_sd15", "sd15", "sd15", adapter={"text_encoders": True}))
    for family in ("sdxl", "flux1"):
        job = write(f"warm_{family}", family, family, adapter={"warm_start": str(wrong)})
        assert main(["train", str(job), "--no-queue"]) == 1
        told = capsys.readouterr().err
        assert f"adapter.warm_start: {wrong}: " in told
    assert "Switch adapter.text_encoders on" not in told  # of FLUX.1, where that would be refused too


# --- LoRA files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_inspect_counts_convolutions_of_all_kinds(
    kind: str, write: Write, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = trained(home, write(f"conv_{kind}", "sdxl", "sdxl", adapter={"type": kind, "conv_rank": 2}))
    capsys.readouterr()
    assert main(["inspect", str(lora), "--json"]) == 0
    names = {key.split(".")[0] for key in load_file(lora)}
    kernels = [name for name in names if "conv1" in name or "conv2" in name or "samplers" in name]
    assert json.loads(capsys.readouterr().out)["convolutions"] == len(kernels) > 0


def test_a_lora_is_drawn_with_a_base_in_single_files(
    write: Write, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = ["--prompt", "a [trigger]", "--out", "pictures", "--width", "64", "--height", "64", "--steps", "1"]
    lora = trained(home, write("usual", "sdxl", "sdxl.safetensors", model={"tokenizers": "sdxl"}))
    assert main(["sample", str(lora), "--base", "sdxl.safetensors", "--tokenizers", "sdxl", *drawing]) == 0
    parts = {"text_encoder": "--text-encoder", "text_encoder_2": "--text-encoder-2", "vae": "--vae"}
    files = [word for part, option in parts.items() for word in (option, f"flux1_parts/{part}.safetensors")]
    lora = trained(home, write("of_flux", "flux1", "flux1"))
    base = ["--base", "flux1_parts/transformer.safetensors", "--tokenizers", "flux1", *files]
    assert main(["sample", str(lora), *base, *drawing]) == 0
    # the picture is the one of the folder
    assert main(["sample", str(lora), "--base", "flux1", *drawing]) == 0
    first, second = sorted((home / "pictures").glob("lora_*.png"))[-2:]
    assert first.read_bytes() == second.read_bytes()


def test_lint_asks_the_tokenizers_that_the_job_names(
    write: Write, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write("linted", "sdxl", "sdxl.safetensors", model={"tokenizers": "sdxl"})
    main(["lint", str(job)])
    main(["lint", "images", "--family", "sdxl", "--base", "sdxl.safetensors", "--tokenizers", "sdxl"])
    assert "not checked" not in capsys.readouterr().out


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_of_single_files_goes_on_from_elsewhere_and_names_no_path(
    write: Write, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part: f"flux1_parts/{part}.safetensors" for part in ("text_encoder", "text_encoder_2", "vae")}
    job = write("parts", "flux1", "flux1_parts/transformer.safetensors", model={"tokenizers": "flux1", **parts})
    lora = trained(home, job)
    monkeypatch.chdir(tmp_path)
    assert main(["resume", str(home / "runs" / "parts"), "--set", "train.steps=2", "--no-queue"]) == 0
    for file in (lora, home / "runs" / "parts" / "checkpoints" / "step_00000002" / "lora.safetensors"):
        assert str(home).encode() not in file.read_bytes()


@pytest.mark.parametrize(("save", "previews"), [(1, 9), (9, 1), (9, 9)])
def test_a_run_folder_that_is_deleted_while_it_trains_does_not_come_back(
    save: int, previews: int, home: Path, tmp_path: Path
) -> None:
    job = JobConfig(
        name="deleted",
        model={"device": "cpu"},  # type: ignore[arg-type]
        datasets=[{"folder": str(home / "images"), "resolutions": [64]}],  # type: ignore[arg-type]
        train={"steps": 4, "log_every": 4},  # type: ignore[arg-type]
        save={"every": save},  # type: ignore[arg-type]
        sample={"prompts": ["a"], "every": previews, "before_training": False, "width": 32, "height": 32, "steps": 1},  # type: ignore[arg-type]
    )
    training = TrainingJob.new(tmp_path / "runs", job, queue_up=False)

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            shutil.rmtree(training.run.path)

    with pytest.raises(FoundryError, match="not there"):
        training.run_here(listen)
    assert not training.run.path.exists()
    assert RunFolder.is_one(training.run.path) is False
