"""One ComfyUI server for all tests of this folder, and small prompts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .server import ComfyServer

TRAIN = {
    "steps": 4,
    "learning_rate": 0.01,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "seed": 1,
    "save_every": 2,
    "sample_every": 4,
    "sample_prompts": "",
    "continue_stopped": True,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "timestep_type": "auto",
    "gradient_checkpointing": False,
    "keep_checkpoints": 4,
    "save_dtype": "float32",
    "sample_before_training": False,
    "sample_width": 0,
    "sample_height": 0,
    "sample_steps": 2,
    "sample_guidance": -1.0,
    "sample_seed": 1,
    "sample_walk_seed": True,
}
DATASET = {
    "folder": "demo",
    "resolutions": "64",
    "default_caption": "",
    "flip_x": False,
    "weight": 1.0,
    "caption_extension": "txt",
}


@pytest.fixture(scope="package")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def training() -> Callable[..., dict[str, Any]]:
    """A prompt that trains the embedded base for a moment: nodes `data`, `captions`, `base`, `lora`, `train`."""

    def prompt(name: str, *, folder: str = "demo", rank: int = 4, **train: Any) -> dict[str, Any]:
        return {
            "data": node("LoadDataset", **{**DATASET, "folder": folder}),
            "captions": node(
                "CaptionWithTrigger",
                dataset=["data", 0],
                trigger="zorble",
                trigger_placement="start",
                caption_dropout=0.0,
                shuffle_tags=False,
                keep_tags=0,
            ),
            "base": base(),
            "lora": node(
                "ConfigureLoRA",
                type="lora",
                rank=rank,
                alpha=0.0,
                dropout=0.0,
                targets="attention_mlp",
                warm_start="[none]",
            ),
            "train": node(
                "TrainLoRA",
                base=["base", 0],
                lora=["lora", 0],
                dataset=["captions", 0],
                name=name,
                **{**TRAIN, **train},
            ),
        }

    return prompt


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One of our nodes in an API prompt."""
    return {"class_type": f"Foundry{kind}", "inputs": inputs}


def base(source: str = "embedded") -> dict[str, Any]:
    """The node that names the base."""
    precisions = {"dtype": "auto", "text_encoder_dtype": "auto", "vae_dtype": "auto"}
    return node("QuantizeBase", family="flux1", source=source, **precisions)
