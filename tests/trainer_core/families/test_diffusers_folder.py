"""Folders in diffusers layout as they are published: variants, shards, older names, and what libraries rename."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from trainer_core.errors import BaseModelError
from trainer_core.families.sources import diffusers_folder, hub
from trainer_core.families.sources.diffusers_folder import FolderPart

from .small_models import small_sd

CPU = torch.device("cpu")
VAE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_sd(tmp_path / "model")


def loaded(part: Path, kind: type = AutoencoderKL) -> dict[str, torch.Tensor]:
    return FolderPart(part).load(kind, torch.float32, CPU).state_dict()


def changed(path: Path, into: Path, factor: float = 2) -> None:
    save_file({name: tensor * factor for name, tensor in load_file(path).items()}, into, metadata={"format": "pt"})


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_the_plain_weights_are_taken_among_variants(variant: str, folder: Path) -> None:
    before = loaded(folder / "vae")
    other = folder / "vae" / f"diffusion_pytorch_model.{variant}.safetensors"
    changed(folder / "vae" / VAE, other)
    after = loaded(folder / "vae")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert FolderPart(folder / "vae").file().name == VAE
    (folder / "vae" / VAE).unlink()
    alone = loaded(folder / "vae")
    assert all(torch.equal(alone[name], 2 * tensor) for name, tensor in before.items())
    assert FolderPart(folder / "vae").file() == other


def test_shards_are_one_part(folder: Path, tmp_path: Path) -> None:
    before = loaded(folder / "vae")
    shutil.copytree(folder / "vae", tmp_path / "sharded")
    (tmp_path / "sharded" / VAE).unlink()
    AutoencoderKL.from_pretrained(folder / "vae").save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    after = loaded(tmp_path / "sharded")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with pytest.raises(BaseModelError, match="split over"):
        FolderPart(tmp_path / "sharded").file()


def test_weights_lie_in_memory_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written over must not change a model loaded from it: by us, or by the library."""
    for found in (diffusers_folder._stored_name, lambda name, files: None):
        monkeypatch.setattr(diffusers_folder, "_stored_name", found)
        model = FolderPart(folder / "vae").load(AutoencoderKL, torch.float32, CPU)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        path = folder / "vae" / VAE
        size, start = path.stat().st_size, 8 + int.from_bytes(path.read_bytes()[:8], "little")
        kept = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(start)
            file.write(bytes(size - start))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert all(tensor.data_ptr() % 64 == 0 for tensor in model.state_dict().values())
        path.write_bytes(kept)


@pytest.mark.parametrize("prefix", [True, False])
def test_clip_with_and_without_its_prefix(prefix: bool, folder: Path) -> None:
    """transformers 4 writes `text_model.…`, transformers 5 need not."""
    path = folder / "text_encoder" / "model.safetensors"
    before = loaded(folder / "text_encoder", CLIPTextModel)
    plain = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    head = "text_model." if prefix else ""
    save_file({head + name: tensor for name, tensor in plain.items()}, path, metadata={"format": "pt"})
    after = loaded(folder / "text_encoder", CLIPTextModel)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_download_leaves_second_copies_out_unless_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fnmatch

    import huggingface_hub

    held = {"one/model": (VAE, "diffusion_pytorch_model.fp16.safetensors"), "two/model": ("x.fp16.safetensors",)}

    def snapshot(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        folder: Path = tmp_path / repo
        for file in ("model_index.json", *(f"vae/{name}" for name in held[repo])):
            wanted = any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(file, pattern) for pattern in ignore_patterns):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(json.dumps({}))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert [path.name for path in (hub.download("one/model", ("scheduler", "vae")) / "vae").iterdir()] == [VAE]
    assert [path.name for path in (hub.download("two/model", ("scheduler", "vae")) / "vae").iterdir()] == [
        "x.fp16.safetensors"
    ]


def test_a_missing_weight_is_named(folder: Path) -> None:
    path = folder / "vae" / VAE
    weights: dict[str, Any] = load_file(path)
    del weights["decoder.conv_in.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"vae.*incomplete: decoder\.conv_in\.weight"):
        loaded(folder / "vae")
