"""The workflows that we ship and what stock nodes make of our outputs, through /prompt of a real server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import base, node
from .server import DEMO_IMAGES, ComfyServer, Result, of_type

SHORT = {"steps": 4, "save_every": 2, "sample_every": 4, "batch_size": 2, "learning_rate": 0.01}
BAD_LOG_LINES = ("lora key not loaded", "NOT LOADED", "ERROR", "Traceback", "shape mismatch", "kernels")


@pytest.fixture
def clean_log(server: ComfyServer) -> Callable[[], None]:
    """Checks that nothing went wrong in the log since the test began."""
    begin = len(server.log())

    def check() -> None:
        text = server.log()[begin:]
        assert not [line for line in text.splitlines() if any(bad in line for bad in BAD_LOG_LINES)]

    return check


def test_train_and_test_runs_headless(server: ComfyServer, clean_log: Callable[[], None]) -> None:
    prompt = server.workflow("train_and_test")
    of_type(prompt, "FoundryTrainLoRA").update(SHORT, name="example")
    of_type(prompt, "FoundrySampleSettings")["steps"] = 2
    of_type(prompt, "FoundrySaveCheckpoint")["name"] = "example"
    of_type(prompt, "FoundryPreviewSamples").update(steps=2)
    result = server.run(prompt)
    assert result.status == "success", result.messages
    clean_log()
    run = server.base / "output" / "lora_foundry" / "example"
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert (server.base / "models" / "loras" / "example.safetensors").is_file()
    assert listed(server, "example") == ["example.safetensors"]
    shown = by_type(prompt, result)
    prompts = of_type(prompt, "FoundryPreviewSamples")["prompts"].splitlines()
    sizes = [picture(server, image).size for image in shown["FoundryPreviewSamples"]["images"]]
    assert sizes == [(64 + 4 + 64, 64)] * len(prompts)
    assert shown["FoundryLoadDataset"]["text"][0].startswith(f"{DEMO_IMAGES} images")
    assert "zorble" in shown["FoundryCaptionWithTrigger"]["text"][0]
    drawn = of_type(prompt, "FoundryTrainLoRA")["sample_prompts"].splitlines()
    assert len(shown["FoundryTrainLoRA"]["images"]) == len(drawn)
    labels = [{"prompt": text, "step": 4, "drawn_by": "LoRA"} for text in drawn]
    assert shown["FoundryTrainLoRA"]["labels"] == labels


def test_a_lora_is_listed_once(server: ComfyServer, training: Callable[..., dict[str, Any]]) -> None:
    """Under the run's name and step, or under the name that a person chose, whichever came first."""
    prompt = training("once") | {"save": node("SaveCheckpoint", run=["train", 0], name="")}
    assert server.run(prompt).outputs["save"]["text"] == ["saved step 4 as once_4_steps.safetensors"]
    assert listed(server, "once") == ["once_4_steps.safetensors"]
    prompt = training("twice") | {"save": node("SaveCheckpoint", run=["train", 0], name="once chosen")}
    assert "saved as once chosen.safetensors" in server.run(prompt).outputs["train"]["text"][0]
    prompt["save"]["inputs"]["name"] = ""
    assert server.run(prompt).outputs["save"]["text"] == ["saved step 4 as once chosen.safetensors"]
    assert listed(server, "twice") == []
    assert listed(server, "once") == ["once chosen.safetensors", "once_4_steps.safetensors"]


def listed(server: ComfyServer, beginning: str) -> list[str]:
    """LoRAs as the stock loader lists them."""
    (names, *_) = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    return sorted(name for name in names if name.startswith(beginning))


def test_a_loader_that_stays_with_an_older_lora_is_told_of(
    server: ComfyServer, training: Callable[..., dict[str, Any]]
) -> None:
    assert server.run(training("retrained")).status == "success"
    result = server.run(training("retrained", learning_rate=0.02))
    told = "⚠ retrained_4_steps.safetensors is another LoRA: loaders that have it selected stay with it"
    assert "saved as retrained_2_4_steps.safetensors" in result.outputs["train"]["text"][0]
    assert told in result.outputs["train"]["text"][0]


def test_stock_nodes_load_and_sample_the_lora(server: ComfyServer, clean_log: Callable[[], None]) -> None:
    """TrainLoRA → LoraModelLoader and → LoraLoaderModelOnly (by lora_name) → KSampler, in one graph."""
    prompt = server.workflow("train_and_sample_with_stock_nodes")
    of_type(prompt, "FoundryTrainLoRA").update(SHORT, name="stock")
    result = server.run(prompt)
    assert result.status == "success", result.messages
    clean_log()
    saved = {
        entry["inputs"]["filename_prefix"]: [picture(server, image) for image in result.outputs[key]["images"]]
        for key, entry in prompt.items()
        if entry["class_type"] == "SaveImage"
    }
    alone, by_link, by_name = (saved[f"foundry/{name}"] for name in ("base", "lora_model", "lora_name"))
    assert all(np.array_equal(left, right) for left, right in zip(by_link, by_name, strict=True))
    assert all(difference(left, right) > 2 for left, right in zip(alone, by_link, strict=True))


def test_a_later_prompt_finds_the_saved_file_without_restart(
    server: ComfyServer, training: Callable[..., dict[str, Any]], clean_log: Callable[[], None]
) -> None:
    prompt = training("saved for later", learning_rate=0.1)
    prompt["save"] = node("SaveCheckpoint", run=["train", 0], which="step", step=2, name="chosen step")
    assert server.run(prompt).status == "success"
    lora = server.base / "models" / "loras" / "chosen step.safetensors"
    checkpoint = server.base / "output/lora_foundry/saved for later/checkpoints/step_00000002/lora.safetensors"
    assert lora.read_bytes() == checkpoint.read_bytes()

    loader = {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": lora.name, "strength_model": 1.0, "strength_clip": 1.0},
    }
    plain, adapted = sampling(), sampling()
    adapted["lora"] = loader
    loader["inputs"].update(model=["load", 0], clip=["load", 1])
    adapted["sampler"]["inputs"]["model"] = ["lora", 0]
    adapted["prompt"]["inputs"]["clip"] = ["lora", 1]
    pictures = [picture(server, server.run(p).outputs["save"]["images"][0]) for p in (plain, adapted)]
    assert difference(*pictures) > 2
    clean_log()


def test_bypass_loader_draws_the_same(server: ComfyServer, training: Callable[..., dict[str, Any]]) -> None:
    """It drops adapters of parts of fused layers, which is why ours are fused."""
    prompt = {**training("bypassed", learning_rate=0.1), **sampling()}
    pictures = []
    for bypass in (False, True):
        prompt["lora_loader"] = {
            "class_type": "LoraModelLoader",
            "inputs": {"model": ["load", 0], "lora": ["train", 1], "strength_model": 1.0, "bypass": bypass},
        }
        prompt["sampler"]["inputs"]["model"] = ["lora_loader", 0]
        result = server.run(prompt)
        assert result.status == "success", result.messages
        pictures.append(picture(server, result.outputs["save"]["images"][0]))
    assert np.abs(np.asarray(pictures[0], int) - np.asarray(pictures[1], int)).max() <= 2


def test_a_name_means_one_lora_in_all_folders(server: ComfyServer, training: Callable[..., dict[str, Any]]) -> None:
    """ComfyUI takes the first folder that has a name, and lists it once: what lies there twice is the same."""
    prompt = training("taken")
    for key, name in (("first", "taken_4_steps"), ("second", "twice"), ("third", "twice")):
        prompt[key] = node("SaveCheckpoint", run=["train", 0], which="latest", step=0, name=name)
    prompt["second"]["inputs"].update(which="step", step=2)
    prompt["unnamed"] = node("SaveCheckpoint", run=["train", 0], which="latest", step=0, name="")
    result = server.run(prompt)
    assert result.status == "success", result.messages
    models, output = server.base / "models" / "loras", server.base / "output" / "loras"
    finished = (output / "taken_4_steps.safetensors").read_bytes()
    assert (models / "taken_4_steps.safetensors").read_bytes() == finished
    assert (models / "twice.safetensors").read_bytes() != (models / "twice_2.safetensors").read_bytes()
    twice = "twice_2.safetensors\n⚠ twice.safetensors is another LoRA"
    assert twice in result.outputs["second"]["text"][0] + result.outputs["third"]["text"][0]
    prompt["train"]["inputs"]["if_settings_changed"] = "start a new run"  # none have: the nodes run again, and no more
    assert server.run(prompt).status == "success"
    listed = [name for name in server.get("/models/loras") if name.startswith(("taken", "twice"))]
    assert sorted(listed) == ["taken_4_steps.safetensors", "twice.safetensors", "twice_2.safetensors"]


def test_our_previews_are_what_ksampler_draws(server: ComfyServer) -> None:
    """The same noise, sigmas, text and VAE: if the steps divide 1000, ComfyUI's `simple` schedule is exactly ours."""
    prompt = sampling(steps=10, seed=5, cfg=3.0)
    prompt["preview"] = node(
        "PreviewSamples",
        base=["base", 0],
        prompts=prompt["prompt"]["inputs"]["text"],
        seed=5,
        steps=10,
        guidance=3.0,
    )
    result = server.run(prompt)
    theirs, ours = (picture(server, result.outputs[key]["images"][0]) for key in ("save", "preview"))
    assert np.abs(np.asarray(theirs, int) - np.asarray(ours, int)).max() <= 2


def test_images_and_captions_come_over_links(
    server: ComfyServer, training: Callable[..., dict[str, Any]], clean_log: Callable[[], None]
) -> None:
    folder = server.base / "input" / "linked"
    folder.mkdir(parents=True)
    for name, colour in (("one", "red"), ("two", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {colour} square")
    prompt = training("linked")
    prompt["files"] = {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "linked"}}
    prompt["data"]["inputs"].update(images=["files", 0], captions=["files", 1])
    datasets = server.base / "output" / "lora_foundry_datasets"
    before = set(datasets.glob("*"))
    result = server.run(prompt)
    assert result.status == "success", result.messages
    clean_log()
    (kept,) = set(datasets.iterdir()) - before
    assert sorted(path.suffix for path in kept.iterdir()) == [".png", ".png", ".txt", ".txt"]
    shown = result.outputs["captions"]["text"][0].splitlines()
    assert sorted(shown) == ["• zorble a blue square", "• zorble a red square"]


def test_nothing_is_trained_again_until_something_changes(
    server: ComfyServer, training: Callable[..., dict[str, Any]]
) -> None:
    runs = server.base / "output" / "lora_foundry"
    folder = server.base / "input" / "unchanged"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "one.png")
    (folder / "one.txt").write_text("a red square")
    prompt = training("unchanged", folder="unchanged")
    for _ in range(2):
        assert server.run(prompt).status == "success"
    assert [path.name for path in runs.glob("unchanged*")] == ["unchanged"]
    (folder / "one.txt").write_text("a red square, changed")
    assert server.run(prompt).status == "success"
    assert sorted(path.name for path in runs.glob("unchanged*")) == ["unchanged", "unchanged_2"]


def test_widgets_of_the_data_set_can_be_linked(server: ComfyServer) -> None:
    text = {"class_type": "PrimitiveString", "inputs": {"value": "demo"}}
    size = {"class_type": "PrimitiveString", "inputs": {"value": "48"}}
    prompt = {"data": node("LoadDataset", folder=["text", 0], resolutions=["size", 0]), "text": text, "size": size}
    for _ in range(2):
        result = server.run(prompt)
        assert result.status == "success", result.messages
        assert result.outputs["data"]["text"][0] == f"{DEMO_IMAGES} images; 48x48: {DEMO_IMAGES}"


def test_samples_without_prompts_block_what_follows(
    server: ComfyServer, training: Callable[..., dict[str, Any]]
) -> None:
    prompt = training("no samples")
    prompt["show"] = {"class_type": "PreviewImage", "inputs": {"images": ["train", 3]}}
    result = server.run(prompt)
    assert result.status == "success", result.messages
    assert "show" not in result.outputs


def sampling(steps: int = 4, seed: int = 3, cfg: float = 1.0) -> dict[str, Any]:
    """A stock graph over the embedded base: text, KSampler, decode, save."""
    stock = {
        "prompt": ("CLIPTextEncode", {"text": "a red circle on a white background", "clip": ["load", 1]}),
        "empty": ("CLIPTextEncode", {"text": "", "clip": ["load", 1]}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sampler": (
            "KSampler",
            {
                "model": ["load", 0],
                "positive": ["prompt", 0],
                "negative": ["empty", 0],
                "latent_image": ["latent", 0],
                "seed": seed,
                "steps": steps,
                "cfg": cfg,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        ),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["load", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "host_test"}),
    }
    graph = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in stock.items()}
    return {"base": base(), "load": node("LoadBase", base=["base", 0]), **graph}


def by_type(prompt: dict[str, Any], result: Result) -> dict[str, dict[str, Any]]:
    """What each node showed, by type."""
    return {prompt[key]["class_type"]: shown for key, shown in result.outputs.items()}


def picture(server: ComfyServer, shown: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(server.file(shown))).convert("RGB")


def difference(left: Image.Image, right: Image.Image) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(np.asarray(left, float) - np.asarray(right, float)).mean())
