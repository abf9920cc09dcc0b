"""Vision models: small ones of the real classes, as transformers' folders and as ComfyUI's single files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from trainer_core.choosing.embedding import STATISTICS, identity_of, model_of
from trainer_core.choosing.vision import Vision, described
from trainer_core.config import model_files
from trainer_core.errors import BaseModelError

CPU = torch.device("cpu")
SIZES = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
"""384 wide, as DINOv2's small one: a single file tells its heads by that."""
SMALL: dict[str, tuple[Any, Any]] = {
    "clip": (
        transformers.CLIPVisionConfig(**SIZES, intermediate_size=64, projection_dim=8, hidden_act="gelu"),
        transformers.CLIPVisionModelWithProjection,
    ),
    "siglip": (transformers.SiglipVisionConfig(**SIZES, intermediate_size=64), transformers.SiglipVisionModel),
    "dinov2": (transformers.Dinov2Config(**SIZES), transformers.Dinov2Model),
}


@pytest.fixture(scope="module", params=[*SMALL])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """A kind, a model of it, and its folder."""
    config, kind = SMALL[request.param]
    folder = tmp_path_factory.mktemp("vision") / request.param
    torch.manual_seed(5)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return request.param, model, folder


@pytest.fixture(scope="module")
def shown() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(3)]


def test_embeddings_are_those_of_the_models_own_pipeline(
    small: tuple[str, Any, Path], shown: list[Image.Image]
) -> None:
    kind, model, folder = small
    size = {"height": 56, "width": 56}
    edge = {"shortest_edge": 56}
    processor = {
        "clip": lambda: transformers.CLIPImageProcessor(size=edge, crop_size=size),
        "siglip": lambda: transformers.SiglipImageProcessor(size=size),
        "dinov2": lambda: transformers.BitImageProcessor(
            size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224},
            image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
        ),
    }[kind]()  # fmt: skip
    squares = [one.crop((10, 0, 50, 40)) for one in shown]  # SigLIP's own would squeeze the picture
    with torch.no_grad():
        found = model(**processor(squares, return_tensors="pt"))
    expected = found.image_embeds if kind == "clip" else found.pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    embedded = Vision(folder, CPU).embed(shown)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(3), atol=1e-6)
    assert (embedded - expected).abs().max() < 0.02  # they scale pictures up in another way


def test_a_single_file_embeds_as_its_folder(
    small: tuple[str, Any, Path], shown: list[Image.Image], tmp_path: Path
) -> None:
    kind, model, folder = small
    expected = Vision(folder, CPU).embed(shown)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    if kind == "siglip":  # as ComfyUI's files have it
        weights = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in weights.items()}
    save_file(weights, tmp_path / "vision.safetensors")
    found = Vision(tmp_path / "vision.safetensors", CPU)
    assert found.name == "vision.safetensors"
    assert (found.embed(shown) - expected).abs().max() < 2e-3


def test_published_shapes_are_described() -> None:
    """The facts of ComfyUI's own configurations of these files."""
    clip = {"vision_model.embeddings.class_embedding": [1280], "visual_projection.weight": [1024, 1280]}
    clip |= {"vision_model.embeddings.patch_embedding.weight": [1280, 3, 14, 14]}
    clip |= {"vision_model.embeddings.position_embedding.weight": [257, 1280]}
    clip |= {f"vision_model.encoder.layers.{k}.layer_norm1.weight": [1280] for k in range(32)}
    clip |= {"vision_model.encoder.layers.0.mlp.fc1.weight": [5120, 1280]}
    assert described(clip) == {
        "model_type": "clip_vision_model",
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "intermediate_size": 5120,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    }
    siglip = {"vision_model.embeddings.patch_embedding.weight": [1152, 3, 14, 14]}
    siglip |= {"vision_model.embeddings.position_embedding.weight": [729, 1152]}
    siglip |= {f"vision_model.encoder.layers.{k}.layer_norm1.weight": [1152] for k in range(27)}
    siglip |= {"vision_model.encoder.layers.0.mlp.fc1.weight": [4304, 1152]}
    found = described(siglip) or {}
    assert (found["model_type"], found["image_size"], found["num_attention_heads"]) == ("siglip_vision_model", 378, 16)
    dino = {"embeddings.cls_token": [1, 1, 1024], "embeddings.position_embeddings": [1, 1370, 1024]}
    dino |= {"embeddings.patch_embeddings.projection.weight": [1024, 3, 14, 14]}
    dino |= {f"encoder.layer.{k}.norm1.weight": [1024] for k in range(24)}
    found = described(dino) or {}
    assert (found["model_type"], found["image_size"], found["use_swiglu_ffn"]) == ("dinov2", 518, False)
    assert described({"text_model.embeddings.position_embedding.weight": [77, 768]}) is None


def test_what_is_no_vision_model_is_refused(tmp_path: Path) -> None:
    save_file({"lora_A": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BaseModelError, match="is no CLIP, SigLIP or DINOv2"):
        Vision(tmp_path / "other.safetensors", CPU)
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BaseModelError, match="'bert'"):
        Vision(folder, CPU)
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(BaseModelError, match="auto_map"):
        Vision(folder, CPU)
    with pytest.raises(BaseModelError, match="no such vision model"):
        model_of(str(tmp_path / "none"))


def test_a_hosts_model_is_found_and_the_statistics_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(model_files, "_FINDERS", [])
    assert model_of(None) is None
    path = tmp_path / "clip_vision_h.safetensors"
    path.write_bytes(b"x")
    model_files.register_model_files(lambda part, name: path if (part, name) == ("clip_vision", path.name) else None)
    assert model_of(None) == path
    assert model_of(STATISTICS) is None
    assert identity_of(path) != identity_of(None)
