"""Bad input gives one message that a user understands, at the node that it belongs to, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import base, node
from .server import ComfyServer

Training = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(server: ComfyServer, request: pytest.FixtureRequest) -> Path:
    """A folder in ComfyUI's input, named after the test, with one good image."""
    path = server.base / "input" / request.node.originalname
    path.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(path / "good.png")
    (path / "good.txt").write_text("a red square")
    return path


def fails(server: ComfyServer, prompt: dict[str, Any], failed_node: str, *parts: str) -> None:
    """Runs a prompt that must fail at a node with a message that holds all parts, and leave no run behind."""
    runs = server.base / "output" / "lora_foundry"
    before = set(runs.glob("*"))
    result = server.run(prompt)
    assert result.status == "error"
    assert result.failed_node == failed_node
    for part in parts:
        assert part in result.error
    assert result.messages["execution_error"]["exception_type"] == "LoRA Foundry"  # which comes before the sentence
    assert set(runs.glob("*")) == before


def refused(server: ComfyServer, prompt: dict[str, Any], *parts: str, node: str = "") -> None:
    """Queues a prompt that must not even be accepted, or not that part of it, because of a node."""
    answer = server.post("/prompt", {"prompt": server.filled(prompt)})
    assert answer["node_errors"]
    assert not node or {one["class_type"] for one in answer["node_errors"].values()} == {node}
    for part in parts:
        assert part in str(answer["node_errors"])


def test_missing_folder(server: ComfyServer, training: Training) -> None:
    refused(server, training("x", folder="nowhere"), "nowhere", "no such folder", node="FoundryLoadDataset")


def test_empty_folder(server: ComfyServer, training: Training, folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    fails(server, training("x", folder=folder.name), "FoundryLoadDataset", str(folder))


def test_corrupt_image_is_named(server: ComfyServer, training: Training, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (folder / "broken.txt").write_text("broken")
    fails(server, training("x", folder=folder.name), "FoundryLoadDataset", "broken.png")


def test_missing_caption_is_named(server: ComfyServer, training: Training, folder: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(folder / "silent.png")
    fails(server, training("x", folder=folder.name), "FoundryLoadDataset", "silent.png")


def test_folder_outside_of_input(server: ComfyServer, training: Training) -> None:
    refused(server, training("x", folder="../output"), "leads out of", "input", node="FoundryLoadDataset")


def test_resolutions_that_are_no_numbers(server: ComfyServer, training: Training) -> None:
    prompt = training("x")
    prompt["data"]["inputs"]["resolutions"] = "big"
    refused(server, prompt, "resolutions", "big", "512, 768, 1024", node="FoundryLoadDataset")


def test_settings_that_do_not_fit_together(server: ComfyServer, training: Training) -> None:
    fails(server, training("x", options={"warmup_steps": 100}), "FoundryTrainLoRA", "warmup_steps")


def test_preservation_without_its_class_word(server: ComfyServer, training: Training) -> None:
    prompt = training("x")
    prompt["kept"] = node("Regularization", output_preservation=True)
    prompt["train"]["inputs"]["regularization"] = ["kept", 0]
    refused(server, prompt, "output_preservation_class", node="FoundryRegularization")


def test_validation_with_nothing_to_validate_on(server: ComfyServer, training: Training) -> None:
    widgets = "validation_every of Training Options", "validation_share of Training Options"
    fails(server, training("x", options={"validation_every": 2}), "FoundryTrainLoRA", *widgets)


def test_an_argument_that_the_optimizer_does_not_take(server: ComfyServer, training: Training) -> None:
    fails(server, training("x", options={"optimizer_options": "momentun=1"}), "FoundryTrainLoRA", "momentun")


def test_text_that_is_no_argument(server: ComfyServer, training: Training) -> None:
    prompt = training("x", options={"optimizer_options": "d_coef 2"})
    refused(server, prompt, "optimizer_options", "d_coef 2", node="FoundryTrainingOptions")


def test_mask_that_is_missing_is_named(server: ComfyServer, training: Training, folder: Path) -> None:
    (folder.parent / "no masks").mkdir()
    prompt = training("x", folder=folder.name)
    prompt["data"]["inputs"]["mask_folder"] = "no masks"
    fails(server, prompt, "FoundryLoadDataset", "good.png")


def test_a_regularization_set_takes_no_trigger(server: ComfyServer, training: Training) -> None:
    prompt = training("x")
    prompt["data"]["inputs"]["role"] = "regularization"
    fails(server, prompt, "FoundryCaptionWithTrigger", "regularization", "trigger")


def test_a_family_that_the_embedded_base_is_not_of(server: ComfyServer, training: Training) -> None:
    prompt = training("x")
    prompt["base"]["inputs"]["family"] = "sd15"
    refused(server, prompt, "FLUX.1", "sd15", "auto", node="FoundryQuantizeBase")


def test_a_failure_is_one_line_in_the_log(server: ComfyServer, training: Training) -> None:
    begin = len(server.log())
    fails(server, training("x", options={"warmup_steps": 100}), "FoundryTrainLoRA", "warmup_steps")
    lines = [line for line in server.log()[begin:].splitlines() if "warmup_steps" in line]
    assert len(lines) == 1
    assert "Traceback" not in server.log()[begin:]
    assert "trainer_core" not in server.log()[begin:]


def test_base_that_is_not_there(server: ComfyServer, training: Training) -> None:
    prompt = training("x")
    missing = str(server.base / "models" / "diffusers" / "missing")
    prompt["base"] = base("missing")
    result = server.run(prompt)
    assert result.failed_node == "FoundryTrainLoRA"
    assert missing in result.error


@pytest.mark.parametrize("name", ["../escape", "a/b", "a\\b", "", "con"])
def test_run_name_that_is_no_file_name(server: ComfyServer, training: Training, name: str) -> None:
    refused(server, training(name), "name")


@pytest.mark.parametrize("name", ["../escape", "a/b", "a\\b", "nul"])
def test_lora_name_that_is_no_file_name(server: ComfyServer, training: Training, name: str) -> None:
    prompt = training("x")
    prompt["save"] = node("SaveCheckpoint", run=["train", 0], which="latest", step=0, name=name)
    refused(server, prompt, "name")


def test_step_that_was_not_saved(server: ComfyServer, training: Training) -> None:
    prompt = training("steps 2 and 4")
    prompt["save"] = node("SaveCheckpoint", run=["train", 0], which="step", step=3, name="")
    result = server.run(prompt)
    assert result.failed_node == "FoundrySaveCheckpoint"
    assert "step 3" in result.error
    assert "2, 4" in result.error


def test_best_step_of_a_run_that_was_not_validated(server: ComfyServer, training: Training) -> None:
    prompt = training("not validated")
    prompt["save"] = node("SaveCheckpoint", run=["train", 0], which="best", step=0, name="")
    result = server.run(prompt)
    assert result.failed_node == "FoundrySaveCheckpoint"
    assert "validation_every" in result.error


def test_run_outside_of_the_runs_folder(server: ComfyServer, tmp_path: Path) -> None:
    """A prompt that is sent to the server can name any folder as its run."""
    (tmp_path / "job.yaml").write_text("name: elsewhere")
    prompt = {"save": node("SaveCheckpoint", run=str(tmp_path), which="latest", step=0, name="")}
    fails(server, prompt, "FoundrySaveCheckpoint", str(tmp_path))


def test_preview_without_prompts(server: ComfyServer) -> None:
    prompt = {
        "base": base(),
        "preview": node("PreviewSamples", base=["base", 0], prompts=" \n"),
    }
    refused(server, prompt, "prompts", node="FoundryPreviewSamples")
