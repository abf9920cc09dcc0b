"""A checkpoint in ComfyUI's models folder: trained by our nodes, tested by stock nodes in the same graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from . import small_checkpoints
from .conftest import base, node
from .server import ComfyServer, of_type
from .test_bad_input import fails, refused
from .test_workflows import BAD_LOG_LINES, difference, picture

Training = Callable[..., dict[str, Any]]
Prompt = dict[str, Any]
NAME = "small_sd15.safetensors"


@pytest.fixture(scope="module")
def checkpoint(server: ComfyServer) -> Iterator[Path]:
    """As models/checkpoints has it; fp16, which is what most are."""
    path = server.base / "models" / "checkpoints" / NAME
    yield small_checkpoints.sd15(path, whole=True, dtype=torch.float16)
    path.unlink()


@pytest.fixture
def trained(training: Training, checkpoint: Path) -> Callable[..., Prompt]:
    """A prompt that trains the checkpoint for two steps."""

    def prompt(name: str, adapter: dict[str, Any] | None = None, **source: Any) -> Prompt:
        made = training(name, steps=2, save_every=2, sample_every=1000, learning_rate=0.05, batch_size=1)
        made["base"] = base(family="sd15", **(source or {"source": f"checkpoints/{checkpoint.name}"}))
        made["lora"]["inputs"].update(adapter or {})
        return made

    return prompt


def stock(lora: Any = None) -> Prompt:
    """Load Checkpoint → Load LoRA → KSampler → Save Image."""
    adapted = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
    graph: dict[str, tuple[str, dict[str, Any]]] = {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": NAME}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    }
    loaded = ["checkpoint", 0], ["checkpoint", 1]
    if lora is not None:
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        graph["loader"] = ("LoraLoader", {**adapted, **strengths, "lora_name": lora})
        loaded = ["loader", 0], ["loader", 1]
    graph |= {
        "text": ("CLIPTextEncode", {"text": "a zorble on a white background", "clip": loaded[1]}),
        "empty": ("CLIPTextEncode", {"text": "", "clip": loaded[1]}),
        "sampler": (
            "KSampler",
            {
                "model": loaded[0],
                "positive": ["text", 0],
                "negative": ["empty", 0],
                "latent_image": ["latent", 0],
                "seed": 3,
                "steps": 2,
                "cfg": 2.0,
                "sampler_name": "ddim",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        ),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}),
        "image": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "checkpoint"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}


@pytest.fixture(scope="module")
def bare(server: ComfyServer, checkpoint: Path) -> Any:
    """What the checkpoint draws without a LoRA."""
    assert checkpoint.is_file()
    result = server.run(stock())
    assert result.status == "success", result.messages
    return picture(server, result.outputs["image"]["images"][0])


@pytest.mark.parametrize(
    "adapter",
    [
        {"text_encoders": True},
        {"type": "lokr", "conv_rank": 4, "text_encoders": True},
    ],
    ids=["lora of both", "lokr with convolutions"],
)
def test_a_checkpoint_is_trained_and_tested_in_one_graph(
    server: ComfyServer, trained: Callable[..., Prompt], bare: Any, adapter: dict[str, Any]
) -> None:
    begin = len(server.log())
    name = f"checkpoint {adapter.get('type', 'lora')}"
    result = server.run({**trained(name, adapter), **stock(["train", 2])})
    assert result.status == "success", result.messages
    assert not [line for line in server.log()[begin:].splitlines() if any(bad in line for bad in BAD_LOG_LINES)]
    assert difference(picture(server, result.outputs["image"]["images"][0]), bare) > 1
    keys = load_file(server.base / "output" / "loras" / f"{name}_2_steps.safetensors")
    assert {key.split("_")[1] for key in keys} == {"unet", "te"}  # lora_unet_… and lora_te_…


def test_a_connected_model_stands_for_its_file(
    server: ComfyServer, trained: Callable[..., Prompt], checkpoint: Path
) -> None:
    prompt = trained("by its model", source="embedded", model=["loaded", 0])
    prompt["loaded"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": NAME}}
    result = server.run(prompt)
    assert result.status == "success", result.messages
    job = server.base / "output" / "lora_foundry" / "by its model" / "job.yaml"
    assert yaml.safe_load(job.read_text(encoding="utf-8"))["model"]["source"] == str(checkpoint)


def test_a_model_with_a_lora_on_it_is_refused(server: ComfyServer, trained: Callable[..., Prompt]) -> None:
    assert server.run(trained("on the model")).status == "success"
    prompt = trained("x", source="embedded", model=["patched", 0])
    prompt["loaded"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": NAME}}
    prompt["patched"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["loaded", 0], "lora_name": "on the model_2_steps.safetensors", "strength_model": 1.0},
    }
    fails(server, prompt, "FoundryQuantizeBase", "LoRA", "Link the loader itself")


def test_a_preset_gives_train_lora_its_settings(
    server: ComfyServer, trained: Callable[..., Prompt], checkpoint: Path
) -> None:
    prompt = trained("preset")
    prompt["preset"] = node("Preset", base=["base", 0], subject="style", vram="8 GB")
    prompt["train"]["inputs"].update(lora=["preset", 0], training_options=["preset", 1], learning_rate=["preset", 3])
    result = server.run(prompt)
    assert result.status == "success", result.messages
    shown = result.outputs["preset"]["text"][0]
    assert "• rank = 16: " in shown
    job = yaml.safe_load((server.base / "output" / "lora_foundry" / "preset" / "job.yaml").read_text(encoding="utf-8"))
    assert (job["adapter"]["rank"], job["adapter"]["conv_rank"]) == (16, 8)
    assert (job["train"]["timestep_type"], job["train"]["learning_rate"]) == ("linear", 1e-4)
    assert job["train"]["steps"] == 2  # the widget's: this output is not linked


def test_the_workflow_for_checkpoints_runs_headless(server: ComfyServer, checkpoint: Path) -> None:
    begin = len(server.log())
    prompt = server.workflow("train_a_checkpoint")
    of_type(prompt, "FoundryQuantizeBase")["source"] = f"checkpoints/{checkpoint.name}"
    of_type(prompt, "FoundryTrainLoRA").update(name="workflow", steps=2, learning_rate=0.05, sample_prompts="")
    of_type(prompt, "EmptyLatentImage").update(width=64, height=64)
    of_type(prompt, "KSampler").update(steps=2)
    result = server.run(prompt)
    assert result.status == "success", result.messages
    assert not [line for line in server.log()[begin:].splitlines() if any(bad in line for bad in BAD_LOG_LINES)]
    job = yaml.safe_load((server.base / "output/lora_foundry/workflow/job.yaml").read_text(encoding="utf-8"))
    assert job["model"]["source"] == str(checkpoint)
    assert job["datasets"][0]["resolutions"] == [512]  # the preset's, for SD 1.5
    assert (job["adapter"]["rank"], job["train"]["gradient_accumulation"]) == (32, 2)


def test_the_workflow_for_any_model_runs_headless(server: ComfyServer, checkpoint: Path) -> None:
    """What Load Checkpoint gives is trained as ComfyUI has loaded it."""
    begin = len(server.log())
    prompt = server.workflow("train_any_model")
    of_type(prompt, "CheckpointLoaderSimple")["ckpt_name"] = checkpoint.name
    of_type(prompt, "FoundryLoadDataset")["resolutions"] = "64"
    of_type(prompt, "FoundryTrainLoRA").update(name="any", steps=2, learning_rate=0.05, sample_prompts="a [trigger]")
    of_type(prompt, "FoundrySampleSettings").update(width=64, height=64, steps=2, before_training=False)
    of_type(prompt, "EmptyLatentImage").update(width=64, height=64)
    of_type(prompt, "KSampler").update(steps=2)
    result = server.run(prompt)
    assert result.status == "success", result.messages
    assert not [line for line in server.log()[begin:].splitlines() if any(bad in line for bad in BAD_LOG_LINES)]
    job = yaml.safe_load((server.base / "output/lora_foundry/any/job.yaml").read_text(encoding="utf-8"))
    assert job["model"]["family"] == "comfyui"


@pytest.mark.parametrize("kind", ["truncated", "pickle", "a LoRA"])
def test_files_that_are_no_checkpoint_are_refused_by_quantize_base(
    server: ComfyServer, trained: Callable[..., Prompt], checkpoint: Path, kind: str
) -> None:
    folder = server.base / "models" / "checkpoints"
    path, said = {
        "truncated": (folder / "cut.safetensors", "cut.safetensors"),
        "pickle": (folder / "old.ckpt", "pickle"),
        "a LoRA": (folder / "lora.safetensors", "a LoRA"),
    }[kind]
    if kind == "truncated":
        with checkpoint.open("rb") as whole:
            path.write_bytes(whole.read(1_000_000))
    elif kind == "pickle":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    else:
        save_file({f"lora_unet_x.lora_{part}.weight": torch.zeros(1, 1) for part in ("up", "down")}, path)
    fails(server, trained("x", source=f"checkpoints/{path.name}"), "FoundryQuantizeBase", said)
    path.unlink()


def test_flux_is_trained_from_separate_files_and_sampled_in_one_graph(server: ComfyServer, training: Training) -> None:
    """Load Base gives ComfyUI's own model, and text encoders and VAE of sizes that no stock loader knows."""
    files = small_checkpoints.flux(server.base / "models")
    begin = len(server.log())
    prompt = training("separate files", steps=2, save_every=2, sample_every=1000, learning_rate=0.1, batch_size=1)
    beside = {part: files[part].name for part in ("text_encoder", "text_encoder_2", "vae")}
    prompt["base"] = base(family="flux1", source="diffusion_models/small_flux.safetensors", **beside)
    pictures = []
    for lora in (None, ["train", 2]):
        drawn = stock(lora)
        drawn["checkpoint"] = node("LoadBase", base=["base", 0])
        result = server.run({**prompt, **drawn})
        assert result.status == "success", result.messages
        pictures.append(picture(server, result.outputs["image"]["images"][0]))
    assert difference(*pictures) > 1
    assert not [line for line in server.log()[begin:].splitlines() if any(bad in line for bad in BAD_LOG_LINES)]


def test_what_a_diffusion_model_lacks_is_named(server: ComfyServer, training: Training) -> None:
    small_checkpoints.flux(server.base / "models")
    prompt = training("x")
    prompt["base"] = base(family="flux1", source="diffusion_models/small_flux.safetensors", vae="small_ae.safetensors")
    fails(server, prompt, "FoundryQuantizeBase", "text_encoder (", "text_encoder_2 (", "T5-XXL")


@pytest.mark.parametrize("name", ["/etc/passwd", "checkpoints/../../secret.safetensors", "loras/a.safetensors"])
def test_names_that_are_in_no_list_are_refused(server: ComfyServer, trained: Callable[..., Prompt], name: str) -> None:
    refused(server, trained("x", source=name), "source")


def test_load_base_hands_out_the_checkpoint_as_comfyui_loads_it(
    server: ComfyServer, trained: Callable[..., Prompt], bare: Any
) -> None:
    prompt = stock()
    prompt["base"] = trained("x")["base"]
    prompt["checkpoint"] = node("LoadBase", base=["base", 0])
    result = server.run(prompt)
    assert result.status == "success", result.messages
    assert difference(picture(server, result.outputs["image"]["images"][0]), bare) == 0
