"""Weights in fp8: plain, and scaled as ComfyUI's files are; what they stand for is reckoned here by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5EncoderModel

from trainer_core.errors import BaseModelError
from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.sources.source import Source, open_source

from .checkpoints import Weights, spec_of, weights_of, write_parts
from .small_models import small_flux

CPU = torch.device("cpu")
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
FP8 = list(LARGEST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_flux(tmp_path_factory.mktemp("models") / "flux")


def scaled(weights: Weights, fp8: torch.dtype, name: str = "scale_weight") -> Weights:
    """Matrices in fp8 with the factor that spends its whole range, as ComfyUI's `fp8_scaled` files keep them."""
    made: Weights = {}
    for key, tensor in weights.items():
        if tensor.ndim != 2 or not key.endswith(".weight"):
            made[key] = tensor
            continue
        scale = tensor.abs().max() / LARGEST[fp8]
        made[key] = (tensor / scale).to(fp8)
        made[key.removesuffix("weight") + name] = scale.float()
    return made


def by_hand(weights: Weights) -> Weights:
    """fp8 times scale, in fp32."""
    return {
        key: tensor.float() * weights.get(key.removesuffix("weight") + "scale_weight", torch.tensor(1.0))
        for key, tensor in weights.items()
        if not key.endswith("scale_weight") and key != "scaled_fp8"
    }


def opened(parts: dict[str, Path], changes: dict[str, Callable[[Weights], Weights]], into: Path) -> Source:
    """A FLUX.1 from separate files, of which some are changed."""
    files = dict(parts)
    for part, change in changes.items():
        files[part] = into / f"{part}_changed.safetensors"
        save_file(change(load_file(parts[part])), files[part])
    denoiser = files.pop("transformer")
    return open_source(str(denoiser), spec_of(FLUX1), FLUX1, {part: str(file) for part, file in files.items()})


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("fp8", FP8)
def test_scaled_weights_are_what_they_stand_for(fp8: torch.dtype, name: str, folder: Path, tmp_path: Path) -> None:
    parts = write_parts(folder, FLUX1, tmp_path)
    exact = by_hand(scaled(load_file(parts["transformer"]), fp8))

    def with_marks(weights: Weights) -> Weights:
        marks = {"scaled_fp8": torch.zeros(2, dtype=fp8)} if name == "scale_weight" else {}
        scales = {"img_in.scale_input": torch.tensor(0.5)} if name == "scale_weight" else {}
        return {**scaled(weights, fp8, name), **marks, **scales}

    source = opened(parts, {"transformer": with_marks}, tmp_path)
    weights = source.load("transformer", FluxTransformer2DModel, torch.float32, CPU).state_dict()
    assert torch.equal(weights["x_embedder.weight"], exact["img_in.weight"])
    q, k, v = exact["double_blocks.0.img_attn.qkv.weight"].chunk(3)
    assert torch.equal(weights["transformer_blocks.0.attn.to_q.weight"], q)
    assert torch.equal(weights["transformer_blocks.0.attn.to_v.weight"], v)
    assert torch.equal(weights["transformer_blocks.0.attn.to_k.weight"], k)
    shift, scale = exact["final_layer.adaLN_modulation.1.weight"].chunk(2)
    assert torch.equal(weights["norm_out.linear.weight"], torch.cat([scale, shift]))
    half = source.load("transformer", FluxTransformer2DModel, torch.bfloat16, CPU).state_dict()
    assert torch.equal(half["x_embedder.weight"], exact["img_in.weight"].bfloat16())


@pytest.mark.parametrize("fp8", FP8)
def test_plain_fp8(fp8: torch.dtype, folder: Path, tmp_path: Path) -> None:
    parts = write_parts(folder, FLUX1, tmp_path)

    def plain(weights: Weights) -> Weights:
        return {key: tensor.to(fp8) for key, tensor in weights.items()}

    source = opened(parts, {"text_encoder_2": plain, "transformer": plain}, tmp_path)
    t5 = source.load("text_encoder_2", T5EncoderModel, torch.float32, CPU).state_dict()
    for name, tensor in weights_of(folder / "text_encoder_2").items():
        assert torch.equal(t5[name], tensor.to(fp8).float()), name
    flux = source.load("transformer", FluxTransformer2DModel, torch.bfloat16, CPU)
    assert {tensor.dtype for tensor in flux.state_dict().values()} == {torch.bfloat16}


def test_scaled_t5(folder: Path, tmp_path: Path) -> None:
    parts = write_parts(folder, FLUX1, tmp_path)
    source = opened(parts, {"text_encoder_2": lambda weights: scaled(weights, FP8[0])}, tmp_path)
    exact = by_hand(scaled(weights_of(folder / "text_encoder_2"), FP8[0]))
    t5 = source.load("text_encoder_2", T5EncoderModel, torch.float32, CPU).state_dict()
    assert all(torch.equal(t5[name], tensor) for name, tensor in exact.items())


def test_a_scale_for_neither_the_weight_nor_its_rows_is_refused(folder: Path, tmp_path: Path) -> None:
    parts = write_parts(folder, FLUX1, tmp_path)

    def by_row(weights: Weights) -> Weights:
        made = scaled(weights, FP8[0])
        return {
            key: tensor.expand(4).contiguous() if key.endswith("scale_weight") else tensor
            for key, tensor in made.items()
        }

    source = opened(parts, {"transformer": by_row}, tmp_path)
    with pytest.raises(
        BaseModelError, match=r"transformer_changed\.safetensors: .*scale_weight does not fit the weight"
    ):
        source.load("transformer", FluxTransformer2DModel, torch.float32, CPU)


def test_comfyuis_marks_of_fp8_are_known(folder: Path, tmp_path: Path) -> None:
    def told(text: str) -> Tensor:
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def marked(weights: Weights) -> Weights:
        made = scaled(weights, FP8[0], "weight_scale")
        marks = [key.removesuffix("weight_scale") for key in made if key.endswith("weight_scale")]
        return {**made, **{f"{mark}comfy_quant": told('{"format": "float8_e4m3fn"}') for mark in marks}}

    source = opened(write_parts(folder, FLUX1, tmp_path), {"transformer": marked}, tmp_path)
    source.load("transformer", FluxTransformer2DModel, torch.float32, CPU)
