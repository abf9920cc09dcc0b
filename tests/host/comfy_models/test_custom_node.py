"""The zoo's models in a real ComfyUI: stock nodes encode, sample and decode with them."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..server import ComfyServer

CUSTOM_NODE = Path(__file__).parent / "custom_node"
PICTURE = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
CLIP = {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 64, "height": 64, "length": 9, "batch_size": 1}}


@pytest.fixture(scope="module")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui"), [CUSTOM_NODE]) as running:
        yield running


def _graph(architecture: str, latent: dict[str, Any]) -> dict[str, Any]:
    def words(text: str) -> dict[str, Any]:
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": text}}

    sampling = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["model", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["latent", 0]}
    return {
        "model": {"class_type": "FoundryTestModel", "inputs": {"architecture": architecture, "seed": 0}},
        "yes": words("a red cube on a table"),
        "no": words("blurry"),
        "latent": latent,
        "sampler": {"class_type": "KSampler", "inputs": sampling | links},
        "pixels": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["pixels", 0], "filename_prefix": architecture}},
    }


@pytest.mark.parametrize(
    ("architecture", "latent", "count"),
    [("sd15", PICTURE, 1), ("flux1", PICTURE, 1), ("qwen_image", PICTURE, 1), ("wan21_t2v", CLIP, 9)],
)
def test_stock_nodes_sample_it(server: ComfyServer, architecture: str, latent: dict[str, Any], count: int) -> None:
    result = server.run(_graph(architecture, latent))
    assert result.status == "success", result.messages
    shown = result.outputs["save"]["images"]
    assert len(shown) == count
    picture = Image.open(BytesIO(server.file(shown[-1])))
    assert picture.size == (64, 64)
    assert len(picture.getcolors(4096)) > 3  # no flat grey
