"""LoRA files as users meet them: fresh names, nothing overwritten, and an account of whatever file is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer_core import files
from trainer_core.adapters.export import describe_lora, export_lora, read_lora_tensors
from trainer_core.errors import AdapterError, ConfigError, SaveError
from trainer_core.safetensors_file import read_header, read_tensors, serialize

OURS = {
    "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": torch.ones(4, 8),
    "diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight": torch.ones(8, 4),
    "diffusion_model.double_blocks.0.img_attn.proj.alpha": torch.tensor(2.0),
    "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(12, 8),
    "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(24, 12),
    "diffusion_model.double_blocks.0.img_attn.qkv.alpha": torch.tensor(6.0),
}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint" / "lora.safetensors"
    path.parent.mkdir()
    save_file(OURS, path, metadata={"modelspec.trigger_phrase": "zorble", "ss_sd_model_name": "embedded"})
    return path


def test_export_is_the_file(lora: Path, tmp_path: Path) -> None:
    target = export_lora(lora, tmp_path / "new" / "loras", "my lora")
    assert target == tmp_path / "new" / "loras" / "my lora.safetensors"
    assert target.read_bytes() == lora.read_bytes()
    assert sorted(target.parent.iterdir()) == [target]


def test_a_name_is_never_used_again(lora: Path, tmp_path: Path) -> None:
    first = export_lora(lora, tmp_path, "style")
    first.write_bytes(b"somebody's")
    names = [export_lora(lora, tmp_path, name).name for name in ("style", "style.safetensors", "style_2")]
    assert names == ["style_2.safetensors", "style_3.safetensors", "style_2_2.safetensors"]
    assert first.read_bytes() == b"somebody's"


def test_export_without_hard_links(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT, some network shares."""

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out"
    assert [export_lora(lora, out, "style").name for _ in range(2)] == ["style.safetensors", "style_2.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == ["style.safetensors", "style_2.safetensors"]


def test_metadata_is_added_and_the_weights_stay(lora: Path, tmp_path: Path) -> None:
    target = export_lora(lora, tmp_path, "style", {"modelspec.author": "me", "ss_sd_model_name": "other"})
    expected = {"modelspec.author": "me", "modelspec.trigger_phrase": "zorble", "ss_sd_model_name": "other"}
    found = read_header(target)["__metadata__"]
    assert {key: value for key, value in found.items() if "sha256" not in key} == expected
    assert all(torch.equal(value, OURS[name]) for name, value in read_tensors(target).items())


@pytest.mark.parametrize("name", ["a/b", "a\\b", "../up", "..", "", ".hidden", "con", "nul.safetensors", "a:b", "a\0b"])
def test_bad_names_are_refused_and_write_nothing(name: str, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError):
        export_lora(lora, out, name)
    assert not out.exists()


def test_a_source_that_is_no_lora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    with pytest.raises(AdapterError, match=r"bad\.safetensors"):
        export_lora(tmp_path / "bad.safetensors", tmp_path / "out", "style")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("metadata", [None, {"modelspec.author": "me"}])
def test_a_damaged_lora_is_not_handed_on(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    data = bytearray(serialize(OURS, {"modelspec.title": "style"}))
    data[-3] ^= 4
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(AdapterError, match=r"bad\.safetensors.*damaged"):
        export_lora(tmp_path / "bad.safetensors", tmp_path / "out", "style", metadata)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SaveError, match="disk is full"):
        export_lora(lora, tmp_path / "out", "style")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_a_file(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(SaveError, match="out"):
        export_lora(lora, tmp_path / "out", "style")


def test_tensors_are_whole_and_their_own(lora: Path) -> None:
    tensors = read_lora_tensors(lora)
    lora.write_bytes(b"")
    assert tensors.keys() == OURS.keys()
    assert all(torch.equal(tensors[name], value) and tensors[name].device.type == "cpu" for name, value in OURS.items())


# --- inspect ---------------------------------------------------------------------------------------------------------


def described(tensors: dict[str, Tensor], folder: Path, metadata: dict[str, str] | None = None) -> dict[str, Any]:
    save_file(tensors, folder / "a.safetensors", metadata=metadata)
    return describe_lora(folder / "a.safetensors")


def test_ours(lora: Path) -> None:
    found = describe_lora(lora)
    assert found["path"] == str(lora)
    assert found["format"] == "diffusion_model (LoRA)"
    assert (found["keys"], found["modules"], found["rank"], found["alpha"]) == (6, 2, [4, 12], [2.0, 6.0])
    assert (found["dtype"], found["size_bytes"]) == ("float32", lora.stat().st_size)
    assert (found["trigger"], found["base_model"]) == ("zorble", "embedded")
    assert found["metadata"]["modelspec.trigger_phrase"] == "zorble"


def test_kohya(tmp_path: Path) -> None:
    parts = ("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1")
    tensors = {}
    for part in parts:
        tensors[f"{part}.lora_down.weight"] = torch.ones(8, 4, 1, 1, dtype=torch.float16)
        tensors[f"{part}.lora_up.weight"] = torch.ones(4, 8, 1, 1, dtype=torch.float16)
        tensors[f"{part}.alpha"] = torch.tensor(4.0, dtype=torch.float16)
    found = described(tensors, tmp_path, {"ss_base_model_version": "sd_v1"})
    assert (found["modules"], found["rank"], found["alpha"], found["dtype"]) == (2, [8], [4.0], "float16")
    assert (found["trigger"], found["base_model"]) == (None, "sd_v1")
    assert "lora_te_text_model" not in found["format"], "a prefix is meant, not the name of a layer"
    assert "lora_unet" in found["format"]
    assert "lora_te" in found["format"]


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("lora_A", "lora_B"),
    ],
)
def test_peft_and_diffusers(down: str, up: str, tmp_path: Path) -> None:
    """All the halves that ComfyUI loads (reference/comfyui-host.md §3.1)."""
    x = "transformer.transformer_blocks.0.attn.to_q"
    found = described({f"{x}.{down}": torch.ones(16, 4), f"{x}.{up}": torch.ones(4, 16)}, tmp_path)
    assert (found["modules"], found["rank"], found["alpha"]) == (1, [16], [])
    assert found["format"].startswith("transformer")


@pytest.mark.parametrize(
    ("key", "kind"), [("x.lokr_w1", "LoKr"), ("x.hada_w1_a", "LoHa"), ("x.oft_blocks", "OFT"), ("x.diff", "difference")]
)
def test_other_kinds_are_named(key: str, kind: str, tmp_path: Path) -> None:
    assert kind in described({f"diffusion_model.{key}": torch.ones(2, 2)}, tmp_path)["format"]


def test_lycoris_files_are_counted(tmp_path: Path) -> None:
    """Ranks are those of the factors; a whole factor has none."""
    unet, text = "lora_unet_mid_block_attentions_0_proj_in", "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    found = described(
        {
            f"{unet}.lokr_w1": torch.ones(4, 4),
            f"{unet}.lokr_w2_a": torch.ones(8, 3),
            f"{unet}.lokr_w2_b": torch.ones(3, 8),
            f"{unet}.alpha": torch.tensor(1.0),
            f"{text}.hada_w1_a": torch.ones(8, 2),
            f"{text}.hada_w1_b": torch.ones(2, 8),
            f"{text}.hada_w2_a": torch.ones(8, 2),
            f"{text}.hada_w2_b": torch.ones(2, 8),
            "lora_unet_conv_in.lora_down.weight": torch.ones(5, 4, 3, 3),
            "lora_unet_conv_in.lora_up.weight": torch.ones(8, 5, 1, 1),
            "lora_unet_conv_in.dora_scale": torch.ones(8, 1, 1, 1),
            "lora_unet_in_time.lora_down.weight": torch.ones(5, 4, 3, 1, 1),
            "lora_unet_in_time.lora_up.weight": torch.ones(8, 5, 1, 1, 1),
        },
        tmp_path,
    )
    assert (found["modules"], found["text_encoder_modules"], found["convolutions"]) == (4, 1, 2)
    assert (found["rank"], found["alpha"], found["names"]) == ([2, 3, 5], [1.0], "kohya")
    assert "DoRA, LoHa, LoKr" in found["format"]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("diffusion_model.x.lora_A.weight", "ComfyUI"),
        ("transformer.x.lora_A.weight", "diffusers"),
        ("unet.x.processor.to_q_lora.down.weight", "diffusers"),
        ("text_encoder.x.lora_linear_layer.down.weight", "diffusers"),
        ("base_model.model.x.lora_A.weight", "PEFT"),
        ("lora_unet_x.lora_down.weight", "kohya"),
        ("lora_transformer_x.lora_down.weight", "lora_transformer"),
        ("lycoris_x.lokr_w1", "lycoris"),
    ],
)
def test_the_way_of_naming_is_told(key: str, names: str, tmp_path: Path) -> None:
    assert described({key: torch.ones(2, 2)}, tmp_path)["names"] == names


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.diffusion_model.input_blocks.0.weight": torch.ones(2, 2)},
        {"a.lora_A.weight": torch.tensor(1.0)},
        {"a.lora_A.weight": torch.ones(2, 2), "a.lora_B.weight": torch.ones(2, 2), "a.alpha": torch.ones(3)},
    ],
    ids=["a whole model", "a number for a matrix", "three alphas"],
)
def test_what_is_no_lora_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"a\.safetensors"):
        described(tensors, tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"\x80\x02}q\0."])
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(AdapterError, match=r"a\.safetensors"):
        describe_lora(tmp_path / "a.safetensors")
