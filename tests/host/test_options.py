"""The nodes with further settings, and what Load Dataset can do, in real runs of a few steps."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from .conftest import node
from .server import DEMO_IMAGES, ROOT, ComfyServer, Result

Training = Callable[..., dict[str, Any]]


@pytest.fixture
def done(server: ComfyServer) -> Callable[[dict[str, Any]], tuple[Result, Path]]:
    """Runs a prompt that must succeed; gives its result and the run's folder."""

    def run(prompt: dict[str, Any]) -> tuple[Result, Path]:
        result = server.run(prompt)
        assert result.status == "success", result.messages
        return result, server.base / "output" / "lora_foundry" / prompt["train"]["inputs"]["name"]

    return run


def job_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "job.yaml").read_text(encoding="utf-8"))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_regularization_options_and_sample_settings_reach_the_run(
    server: ComfyServer, training: Training, done: Callable[[dict[str, Any]], tuple[Result, Path]]
) -> None:
    prompt = training(
        "with options",
        sample_prompts="a red [trigger] on a white background",
        options={
            "optimizer": "lion",
            "lr_scheduler": "cosine",
            "ema_decay": 0.5,
            "validation_every": 2,
            "validation_share": 0.25,
        },
        samples={"width": 48, "height": 64, "before_training": True},
    )
    prompt["kept"] = node(
        "Regularization",
        output_preservation=True,
        output_preservation_class="shape",
        blank_preservation=True,
        preservation_every=2,
    )
    prompt["train"]["inputs"]["regularization"] = ["kept", 0]
    result, run = done(prompt)

    job = job_of(run)
    assert (job["train"]["optimizer"], job["train"]["ema_decay"], job["train"]["lr_scheduler"]) == (
        "lion",
        0.5,
        "cosine",
    )
    assert job["regularization"]["output_preservation_class"] == "shape"
    assert (job["validation"]["every"], job["validation"]["share"]) == (2, 0.25)
    assert (job["sample"]["width"], job["sample"]["height"]) == (48, 64)

    lines = metrics_of(run)
    preserved = [line["step"] for line in lines if "output_preservation" in line and "blank_preservation" in line]
    assert preserved == [1, 3]  # every second step, from the first
    assert {line["step"] for line in lines if "validation_loss" in line} >= {2, 4}
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    text = result.outputs["train"]["text"][0]
    for name in ("output preservation", "blank preservation", "validation"):
        assert f"{name} loss" in text
    (shown,) = result.outputs["train"]["images"]
    assert Image.open(io.BytesIO(server.file(shown))).size == (48, 64)
    assert len(list((run / "samples").iterdir())) == 2  # before the first step and at the last


def test_a_regularization_set_is_trained_beside_the_first(
    server: ComfyServer, training: Training, done: Callable[[dict[str, Any]], tuple[Result, Path]]
) -> None:
    folder = server.base / "input" / "class images"
    folder.mkdir(parents=True)
    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} square")
    prompt = training("with a set")
    prompt["class"] = node(
        "LoadDataset", folder=folder.name, resolutions="64", role="regularization", regularization_target="base"
    )
    prompt["kept"] = node("Regularization", regularization_set_ratio=0.25)
    prompt["train"]["inputs"].update(dataset_2=["class", 0], regularization=["kept", 0])
    _, run = done(prompt)
    job = job_of(run)
    assert [(one["role"], one["trigger"]) for one in job["datasets"]] == [("train", "zorble"), ("regularization", None)]
    assert job["regularization"]["ratio"] == 0.25


def test_masks_come_over_a_link(
    server: ComfyServer, training: Training, done: Callable[[dict[str, Any]], tuple[Result, Path]]
) -> None:
    folder = server.base / "input" / "masked"
    folder.mkdir(parents=True)
    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} square")
    prompt = training("masked")
    prompt["files"] = {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "masked"}}
    prompt["mask"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}}
    prompt["data"]["inputs"].update(images=["files", 0], captions=["files", 1], masks=["mask", 0])
    _, run = done(prompt)
    (dataset,) = job_of(run)["datasets"]
    masks = sorted(Path(dataset["mask_folder"]).iterdir())
    assert [path.stem for path in masks] == sorted(path.stem for path in Path(dataset["folder"]).glob("*.png"))
    assert {Image.open(path).getextrema() for path in masks} == {(255, 255)}

    prompt["data"]["inputs"]["mask_folder"] = "masked"
    result = server.run(prompt)
    assert result.failed_node == "FoundryLoadDataset"
    assert "mask_folder" in result.error


def test_an_edit_model_sees_its_control_images(
    server: ComfyServer, training: Training, done: Callable[[dict[str, Any]], tuple[Result, Path]]
) -> None:
    controls = server.base / "input" / "before the edit"
    shutil.copytree(ROOT / "trainer_core" / "embedded" / "demo_dataset", controls)
    prompt = training("edited")
    prompt["base"]["inputs"]["family"] = "flux1_kontext"
    prompt["data"]["inputs"]["control_folders"] = controls.name  # below ComfyUI's input folder
    result, run = done(prompt)
    assert job_of(run)["datasets"][0]["control_folders"] == [str(controls.resolve())]
    assert "control images: 1 each" in result.outputs["data"]["text"][0]


def checked(server: ComfyServer, folder: str) -> list[str]:
    """The lines that Load Dataset shows when it checks a folder."""
    result = server.run({"data": node("LoadDataset", folder=folder, resolutions="64", check=True)})
    assert result.status == "success", result.messages
    return result.outputs["data"]["text"][0].splitlines()


def test_check_shows_what_it_finds(server: ComfyServer) -> None:
    first, *rest = checked(server, "demo")
    assert first.startswith(f"{DEMO_IMAGES} images")
    assert rest == [f"checked {DEMO_IMAGES} images: nothing to complain about"]

    folder = server.base / "input" / "twins"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 100).convert("RGB").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"picture {name}")
    assert [line for line in checked(server, "twins") if line.startswith("⚠ one.png")]
