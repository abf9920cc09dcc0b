"""Files that are not the model asked for: one message that names the file and says what it seems to be."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer_core.errors import BaseModelError
from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.sources.layout import Layout
from trainer_core.families.sources.source import open_source
from trainer_core.families.stable_diffusion.layouts import SD1, SDXL

from .checkpoints import Weights, spec_of, write_checkpoint, write_parts
from .small_models import small_flux, small_sd, small_sdxl

ALL = {"sd1": SD1, "sdxl": SDXL, "flux1": FLUX1}
MAKERS = {"sd1": small_sd, "sdxl": small_sdxl, "flux1": small_flux}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of file, by what it is."""
    root = tmp_path_factory.mktemp("files")
    found = {
        f"{name} checkpoint": write_checkpoint(folders[name], ALL[name], root / f"{name}.safetensors") for name in ALL
    }
    for name in ALL:
        for part, path in write_parts(folders[name], ALL[name], root / name).items():
            found[f"{name} {part}"] = path
    for name, weights in OTHERS.items():
        found[name] = root / f"{name}.safetensors"
        save_file({key: torch.zeros(shape) for key, shape in weights.items()}, found[name])
    return found


OTHERS: dict[str, dict[str, tuple[int, ...]]] = {
    "lora": {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (320, 4),
    },
    "native lora": {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (4, 64)},
    "controlnet": {"control_model.input_blocks.0.0.weight": (32, 4, 3, 3), "control_model.time_embed.0.weight": (4, 4)},
    "diffusers controlnet": {
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "conv_in.weight": (32, 4, 3, 3),
    },
    "esrgan": {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
    "embedding": {"emb_params": (2, 768)},
    "sd2": {
        "model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (32,),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (32, 32),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    },
    "wan": {"model.diffusion_model.blocks.0.self_attn.norm_k.weight": (128,)},
    "flux2": {
        "double_stream_modulation_img.lin.weight": (4, 4),
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    },
    "language model": {"model.layers.0.self_attn.q_proj.weight": (8, 8)},
    "nothing": {"some.weight": (2, 2)},
}


def refusal(layout: Layout, path: Path, **given: str) -> str:
    with pytest.raises(BaseModelError) as caught:
        open_source(str(path), spec_of(layout), layout, given)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("asked", "file", "words"),
    [
        ("sdxl", "flux1 checkpoint", "a FLUX.1 checkpoint"),
        ("sdxl", "flux1 transformer", "a FLUX.1 diffusion model"),
        ("sdxl", "sd1 checkpoint", "an SD 1.5 checkpoint"),
        ("sd1", "sdxl checkpoint", "an SDXL checkpoint"),
        ("sd1", "sdxl unet", "an SDXL diffusion model"),
        ("sd1", "sd2", "an SD 2.x checkpoint"),
        ("flux1", "sdxl checkpoint", "an SDXL checkpoint"),
        ("flux1", "flux2", "a FLUX.2 diffusion model"),
        ("flux1", "wan", "a Wan diffusion model"),
        ("sd1", "lora", "a LoRA"),
        ("flux1", "native lora", "a LoRA"),
        ("sd1", "controlnet", "a ControlNet"),
        ("sdxl", "diffusers controlnet", "a ControlNet"),
        ("sdxl", "sdxl vae", "a VAE"),
        ("sd1", "esrgan", "an upscaler"),
        ("sd1", "embedding", "a textual inversion"),
        ("sd1", "sd1 text_encoder", "a CLIP text encoder"),
        ("flux1", "flux1 text_encoder_2", "a T5 text encoder"),
        ("flux1", "language model", "a language model"),
        ("flux1", "nothing", "something that LoRA Foundry does not know"),
    ],
)
def test_another_kind_of_file(asked: str, file: str, words: str, files: dict[str, Path]) -> None:
    message = refusal(ALL[asked], files[file])
    assert str(files[file]) in message
    assert f"is no {ALL[asked].title} model; it seems to be {words}" in message


@pytest.mark.parametrize(
    ("part", "file", "words"),
    [
        ("vae", "flux1 vae", "a VAE"),  # of another family: it has 16 channels
        ("vae", "sd1 text_encoder", "a CLIP text encoder"),
        ("text_encoder", "sd1 vae", "a VAE"),
        ("text_encoder", "flux1 text_encoder_2", "a T5 text encoder"),
        ("text_encoder", "lora", "a LoRA"),
    ],
)
def test_another_kind_of_part(part: str, file: str, words: str, files: dict[str, Path]) -> None:
    message = refusal(SD1, files["sd1 checkpoint"], **{part: str(files[file])})
    assert f"model.files.{part}" in message
    assert str(files[file]) in message
    assert f"it seems to be {words}" in message


def test_the_other_clip(files: dict[str, Path], tmp_path: Path) -> None:
    """The published sizes tell CLIP-L from CLIP-G."""
    big = {
        "text_model.embeddings.token_embedding.weight": torch.zeros(8, 1280),
        "text_model.embeddings.position_embedding.weight": torch.zeros(77, 1280),
        "text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(8, 1280),
    }
    save_file(big, tmp_path / "clip_g.safetensors")
    message = refusal(SDXL, files["sdxl checkpoint"], text_encoder=str(tmp_path / "clip_g.safetensors"))
    assert "CLIP-L" in message
    assert "a CLIP-G text encoder" in message


def test_parts_that_are_missing_are_named(files: dict[str, Path]) -> None:
    message = refusal(FLUX1, files["flux1 transformer"], text_encoder=str(files["flux1 text_encoder"]))
    assert "model.files.text_encoder_2 (T5-XXL text encoder)" in message
    assert "model.files.vae" in message
    assert "model.files.text_encoder (" not in message


def test_a_part_that_the_family_has_not(files: dict[str, Path]) -> None:
    message = refusal(SD1, files["sd1 checkpoint"], text_encoder_2=str(files["flux1 text_encoder_2"]))
    assert "model.files.text_encoder_2: SD 1.5 has no such part" in message


def test_a_part_that_is_not_there(files: dict[str, Path], tmp_path: Path) -> None:
    assert "no such file" in refusal(SD1, files["sd1 checkpoint"], vae=str(tmp_path / "none.safetensors"))


# --- other formats ---------------------------------------------------------------------------------------------------


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was opened",))


def pickled() -> bytes:
    return pickle.dumps({"state_dict": Bomb()})


def zipped() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": Bomb()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("content", [pickled, zipped])
def test_pickles_are_never_opened(name: str, content: Any, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    for message in (refusal(SD1, path), refusal(SD1, files["sd1 checkpoint"], vae=str(path))):
        assert str(path) in message
        assert "pickle" in message
        assert ".safetensors" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF\3\0\0\0" + bytes(64), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>login</html>", "web page"),
        (b"", "safetensors"),
        (b"hello", "safetensors"),
        (bytes(100), "safetensors"),
        (struct.pack("<Q", 1 << 60) + b"{}", "truncated"),
        (struct.pack("<Q", 2) + b"[]", "safetensors"),
    ],
)
def test_other_formats(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    message = refusal(SD1, path)
    assert str(path) in message
    assert words in message


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_a_truncated_checkpoint(share: float, files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["sdxl checkpoint"].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(len(whole) * share)])
    message = refusal(SDXL, path)
    assert str(path) in message
    assert "truncated" in message
    assert "again" in message


@pytest.mark.parametrize(
    "header",
    [
        {"a": 1},
        {"a": {"dtype": "F32"}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 400]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"__metadata__": [], "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_a_hostile_header(header: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "x.safetensors" in refusal(SD1, tmp_path / "x.safetensors")


# --- precision -------------------------------------------------------------------------------------------------------


def with_marks(folder: Path, path: Path, marks: Weights, metadata: dict[str, str] | None = None) -> Path:
    def marked(weights: Weights) -> Weights:
        return {**weights, **marks}

    return write_checkpoint(folder, SD1, path, marked, metadata)


def told(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("marks", "metadata", "words"),
    [
        ({f"{LAYER}.weight.quant_state.bitsandbytes__nf4": told("{}")}, None, "nf4"),
        ({f"{LAYER}.comfy_quant": told('{"format": "nvfp4"}')}, None, "nvfp4"),
        ({f"{LAYER}.comfy_quant": told('{"format": "convrot_w4a4"}')}, None, "convrot_w4a4"),
        ({f"{LAYER}.comfy_quant": told("no json")}, None, "unknown"),
        ({}, {"_quantization_metadata": '{"layers": {"x": {"format": "mxfp8"}}}'}, "mxfp8"),
    ],
)
def test_unknown_quantization(
    marks: Weights, metadata: dict[str, str] | None, words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = with_marks(folders["sd1"], tmp_path / "quantized.safetensors", marks, metadata)
    message = refusal(SD1, path)
    assert str(path) in message
    assert words in message
    assert "fp8 version" in message


def test_integers_are_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    def rounded(weights: Weights) -> Weights:
        return {
            name: tensor.to(torch.int8) if name == f"{LAYER}.weight" else tensor for name, tensor in weights.items()
        }

    from diffusers import UNet2DConditionModel

    source = open_source(
        str(write_checkpoint(folders["sd1"], SD1, tmp_path / "int8.safetensors", rounded)), spec_of(SD1), SD1
    )
    with pytest.raises(BaseModelError, match=r"int8\.safetensors: .*to_q\.weight is stored as I8"):
        source.load("unet", UNet2DConditionModel, torch.float32, torch.device("cpu"))


def test_more_weights_than_the_model_has(folders: dict[str, Path], tmp_path: Path) -> None:
    """Such as a UNet with motion modules: what would be left out is no detail."""
    from diffusers import UNet2DConditionModel

    more = {"model.diffusion_model.input_blocks.1.2.temporal_transformer.norm.weight": torch.zeros(4)}
    source = open_source(str(with_marks(folders["sd1"], tmp_path / "motion.safetensors", more)), spec_of(SD1), SD1)
    with pytest.raises(BaseModelError, match=r"motion\.safetensors: holds 1 weights .*temporal_transformer"):
        source.load("unet", UNet2DConditionModel, torch.float32, torch.device("cpu"))


def test_a_folder_family_reads_no_files(files: dict[str, Path]) -> None:
    with pytest.raises(BaseModelError, match="diffusers layout only"):
        open_source(str(files["sd1 checkpoint"]), spec_of(SD1))
