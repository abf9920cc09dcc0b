"""One ComfyUI server for all tests of this folder, and small prompts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .runs import EXACT, run_of
from .server import ComfyServer

TRAIN = {"steps": 4, "learning_rate": 0.01, "batch_size": 2, "seed": 1, "save_every": 2, "sample_every": 4}
OPTIONS = {"weight_decay": 0.0, "gradient_checkpointing": False}
SAMPLES = {"before_training": False, "steps": 2, "seed": 1}


@pytest.fixture(scope="package")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="package")
def undisturbed(server: ComfyServer, training: Callable[..., dict[str, Any]]) -> Path:
    """A run that nothing came in the way of, of the settings `EXACT`."""
    prompt = training("undisturbed", **EXACT)
    assert server.run(prompt).status == "success"
    return run_of(server, prompt)


@pytest.fixture(scope="session")
def training() -> Callable[..., dict[str, Any]]:
    """A prompt that trains the embedded base for a moment; its keys are `data`, `captions`, `base`, …, `train`."""

    def prompt(
        name: str,
        *,
        folder: str = "demo",
        rank: int = 4,
        options: dict[str, Any] | None = None,
        samples: dict[str, Any] | None = None,
        **train: Any,
    ) -> dict[str, Any]:
        return {
            "data": node("LoadDataset", folder=folder, resolutions="64"),
            "captions": node("CaptionWithTrigger", dataset=["data", 0], trigger="zorble"),
            "base": base(),
            "lora": node("ConfigureLoRA", rank=rank),
            "options": node("TrainingOptions", **{**OPTIONS, **(options or {})}),
            "samples": node("SampleSettings", **{**SAMPLES, **(samples or {})}),
            "train": node(
                "TrainLoRA",
                base=["base", 0],
                lora=["lora", 0],
                dataset=["captions", 0],
                training_options=["options", 0],
                sample_settings=["samples", 0],
                name=name,
                **{**TRAIN, **train},
            ),
        }

    return prompt


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One of our nodes in an API prompt; widgets that are left out get their defaults."""
    return {"class_type": f"Foundry{kind}", "inputs": inputs}


def base(folder_or_repo: str = "", **more: Any) -> dict[str, Any]:
    """The node that names the base: the embedded one, a folder or repository, or what else its widgets say."""
    return node("QuantizeBase", folder_or_repo=folder_or_repo, **more)
