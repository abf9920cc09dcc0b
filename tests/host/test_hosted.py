"""Bases that a graph's loaders hand over, in a real ComfyUI: trained, cancelled, resumed, and left as they were."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import node
from .runs import begun, run_of, status, steps, weights
from .server import ComfyServer

CUSTOM_NODE = Path(__file__).parent / "comfy_models" / "custom_node"
STEPS = 12
SLOW = {"steps": STEPS, "batch_size": 4, "gradient_accumulation": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folders, with a few pictures in `input/pictures`."""
    folder = tmp_path_factory.mktemp("hosted")
    pictures = folder / "input" / "pictures"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, caption in enumerate(["a red [trigger]", "a", "a b c d"]):
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def server(comfyui: Path, base: Path) -> Iterator[ComfyServer]:
    with ComfyServer(comfyui, base, [CUSTOM_NODE]) as running:
        yield running


def training(name: str, architecture: str = "flux1", **train: Any) -> dict[str, Any]:
    """Trains a model of the zoo, and tells what is left behind."""
    options = {"deterministic": True, "gradient_checkpointing": bool(train.pop("recompute", True))}
    settings = {"steps": 3, "learning_rate": 0.01, "sample_every": 100, "save_every": 100, **train}
    return {
        "model": node("TestModel", architecture=architecture, seed=0),
        "data": node("LoadDataset", folder="pictures", resolutions="128"),
        "captions": node("CaptionWithTrigger", dataset=["data", 0], trigger="zorble"),
        "base": node("QuantizeBase", model=["model", 0], clip=["model", 1], vae_model=["model", 2]),
        "lora": node("ConfigureLoRA", rank=2),
        "options": node("TrainingOptions", **options),
        "samples": node("SampleSettings", width=128, height=128, steps=2, before_training=False),
        "train": node(
            "TrainLoRA",
            base=["base", 0],
            lora=["lora", 0],
            dataset=["captions", 0],
            training_options=["options", 0],
            sample_settings=["samples", 0],
            sample_prompts="a [trigger]",
            name=name,
            **settings,
        ),
    }


def sampling(model: list[Any], seed: int = 1) -> dict[str, Any]:
    """Stock nodes that draw with a MODEL beside the CLIP and VAE of the zoo's."""
    links = {"model": model, "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["latent", 0]}
    settings = {"steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        "yes": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "a zorble"}},
        "no": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "blurry"}},
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sampler": {"class_type": "KSampler", "inputs": {"seed": seed, **settings, **links}},
        "pixels": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["pixels", 0], "filename_prefix": "drawn"}},
    }


def drawn(server: ComfyServer, prompt: dict[str, Any]) -> bytes:
    """The pixels that a prompt saves; its metadata are the prompt."""
    result = server.run(prompt)
    assert result.status == "success", result.messages
    (shown,) = result.outputs["save"]["images"]
    with Image.open(server.base / "output" / shown["filename"]) as picture:
        return picture.tobytes()


def state(server: ComfyServer, architecture: str = "flux1") -> dict[str, Any]:
    """What `FoundryTestState` tells."""
    prompt = {
        "model": node("TestModel", architecture=architecture, seed=0),
        "state": node("TestState", model=["model", 0]),
    }
    found: dict[str, Any] = json.loads(server.run(prompt).outputs["state"]["text"][0])
    return found


def same(server: ComfyServer, before: dict[str, Any]) -> None:
    """Nothing on the MODEL or in the process is otherwise than before, but for memory."""
    now = state(server)
    assert {**now, "rss": 0, "models": 0} == {**before, "rss": 0, "models": 0}


@pytest.mark.parametrize("architecture", ["flux1", "sdxl", "qwen_image"])
def test_trained_and_sampled_in_one_graph(server: ComfyServer, architecture: str) -> None:
    """The picture differs from the base's, and the base's is what it was before."""
    model = {"model": node("TestModel", architecture=architecture, seed=0)}
    before = drawn(server, {**model, **sampling(["model", 0])})
    loader = {"model": ["model", 0], "lora_name": ["train", 2], "strength_model": 1.0}
    prompt = {
        **training(f"one graph {architecture}", architecture, steps=4),
        "loader": {"class_type": "LoraLoaderModelOnly", "inputs": loader},
        **sampling(["loader", 0]),
    }
    seen = len(server.log())
    assert drawn(server, prompt) != before
    log = server.log()[seen:]
    assert "lora key not loaded" not in log
    assert "Traceback" not in log
    again = {**model, **sampling(["model", 0])}
    again["save"]["inputs"]["filename_prefix"] = "again"
    again["sampler"]["inputs"]["denoise"] = 0.9999999  # not from ComfyUI's cache, and the same steps
    assert drawn(server, again) == before


def test_what_is_missing_or_cannot_be_trained_is_told_in_words(server: ComfyServer) -> None:
    for link, words in (("clip", "has no CLIP"), ("vae_model", "has no VAE")):
        prompt = training("never begun")
        del prompt["base"]["inputs"][link]
        assert words in server.run(prompt).error
    assert "takes a picture and no text" in server.run(training("never begun", "svd")).error
    named = training("never begun")
    named["base"]["inputs"]["family"] = "flux1"
    assert "set family to auto" in server.run(named).error
    assert not (server.base / "output" / "lora_foundry" / "never begun").exists()


@pytest.mark.parametrize("recompute", [True, False])
def test_cancelled_it_goes_on_and_nothing_is_left_behind(server: ComfyServer, recompute: bool) -> None:
    before = state(server)
    prompt = training(f"cancelled {recompute}", recompute=recompute, **SLOW)
    prompt_id, run = begun(server, prompt)
    server.post("/interrupt", {"prompt_id": prompt_id})
    assert server.wait(prompt_id).interrupted
    now = status(run)
    assert now["state"] == "stopped", now
    assert 2 <= now["step"] < STEPS
    same(server, before)
    assert server.run(prompt).status == "success"
    assert status(run)["state"] == "finished"
    assert steps(run) == list(range(1, STEPS + 1))
    same(server, before)


def test_cancelled_inside_a_preview_it_goes_on(server: ComfyServer) -> None:
    """ComfyUI's sampler would make a thousand steps: the cancel is seen at one, and what was trained is saved."""
    prompt = training("in a preview", steps=4, sample_every=2)
    prompt["samples"]["inputs"]["steps"] = 1000
    prompt_id, run = begun(server, prompt)
    while "drawing sample" not in (run / "log.txt").read_text(encoding="utf-8"):
        time.sleep(0.05)
    server.post("/interrupt", {"prompt_id": prompt_id})
    assert server.wait(prompt_id).interrupted
    assert (status(run)["state"], status(run)["step"]) == ("stopped", 2)
    assert not list(run.glob("samples/*/*.png"))
    prompt["samples"]["inputs"]["steps"] = 2
    assert server.run(prompt).status == "success"
    assert [path.parent.name for path in sorted(run.glob("samples/*/*.png"))] == ["step_00000002", "step_00000004"]


def test_a_failure_leaves_nothing_behind(server: ComfyServer) -> None:
    before = state(server)
    failing = training("fails")
    failing["other"] = node("TestModel", architecture="ltx2", seed=0)
    failing["base"]["inputs"]["clip"] = ["other", 1]
    error = server.run(failing).error
    assert status(server.base / "output" / "lora_foundry" / "fails")["state"] == "failed"
    assert "belongs to another model" in error
    same(server, before)


def test_the_same_graph_goes_on_after_a_restart_in_the_same_bytes(
    comfyui: Path, base: Path, server: ComfyServer, tmp_path: Path
) -> None:
    """Another workflow that samples the MODEL comes in between."""
    assert server.run(training("undisturbed", **SLOW)).status == "success"
    other = tmp_path / "other"
    other.mkdir()
    (other / "input").symlink_to(base / "input", target_is_directory=True)
    prompt = training("killed", save_every=1, **SLOW)
    with ComfyServer(comfyui, other, [CUSTOM_NODE]) as first:
        begun(first, prompt, 3)
        first.kill()
    with ComfyServer(comfyui, other, [CUSTOM_NODE]) as second:
        drawn(second, {"model": node("TestModel", architecture="flux1", seed=0), **sampling(["model", 0])})
        result = second.run(prompt)
        assert "goes on with killed from step" in result.outputs["train"]["text"][0]
        killed = run_of(second, prompt)
    assert weights(killed) == weights(server.base / "output" / "lora_foundry" / "undisturbed")


def test_no_memory_grows_over_ten_runs(server: ComfyServer) -> None:
    for warm_up in range(2):
        assert server.run(training(f"warm up {warm_up}")).status == "success"
    before = state(server)
    for number in range(10):
        assert server.run(training(f"memory {number}")).status == "success"
    time.sleep(1)
    after = state(server)
    assert after["models"] <= before["models"]
    assert after["rss"] - before["rss"] < 64 << 20
