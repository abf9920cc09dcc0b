"""The names by which single files keep their weights, for the real models: as diffusers' converters read them.

No weights: all on the meta device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.sources.loading import empty_model
from trainer_core.families.stable_diffusion.layouts import SD1, SDXL
from trainer_core.families.stable_diffusion.unet import original_modules

from .checkpoints import PREFIXES, conv_attention, original

LAYOUTS = {layout.name: layout for layout in (SD1, SDXL, FLUX1)}
KINDS: dict[str, type] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "transformer": FluxTransformer2DModel,
    "text_encoder": CLIPTextModel,
}
SECOND = {"sdxl": CLIPTextModelWithProjection, "flux1": T5EncoderModel}
PARTS = [(name, part) for name, layout in LAYOUTS.items() for part in layout.parts]


def model(layout: str, part: str, config: dict[str, Any] | None = None) -> torch.nn.Module:
    return empty_model(KINDS.get(part) or SECOND[layout], config or LAYOUTS[layout].config(part))


def shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


@pytest.mark.parametrize(("layout", "part"), PARTS)
def test_sizes_are_read_from_shapes_in_either_naming(layout: str, part: str) -> None:
    config = LAYOUTS[layout].config(part)
    weights = model(layout, part).state_dict()
    for named in (weights, original(layout, part, weights)):
        found = LAYOUTS[layout].parts[part].describe(config, shapes_of(named))
        assert found is not None
        assert found[0] == config


@pytest.mark.parametrize(
    ("layout", "part", "million"),
    [
        ("sd1", "unet", 859.52),
        ("sdxl", "unet", 2567.46),
        ("flux1", "transformer", 11901.41),
        ("sd1", "vae", 83.65),
        ("sd1", "text_encoder", 123.06),
        ("sdxl", "text_encoder_2", 694.66),
    ],
)
def test_the_shipped_configurations_are_the_published_models(layout: str, part: str, million: float) -> None:
    """Numbers of parameters as the model cards and papers give them."""
    count = sum(parameter.numel() for parameter in model(layout, part).parameters())
    assert count / 1e6 == pytest.approx(million, abs=0.01)


def as_diffusers_reads_it(layout: str, part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = PREFIXES[layout][part]
    whole = {prefix + name: tensor for name, tensor in weights.items()}
    if part == "unet":
        return converters.convert_ldm_unet_checkpoint(whole, LAYOUTS[layout].config(part))
    if part == "vae":
        # the converter knows checkpoints of SD by this prefix
        whole = {"first_stage_model." + name: tensor for name, tensor in conv_attention(weights).items()}
        return converters.convert_ldm_vae_checkpoint(whole, LAYOUTS[layout].config(part))
    if part == "transformer":
        return converters.convert_flux_transformer_checkpoint_to_diffusers(whole)
    if part == "text_encoder_2":
        return converters.convert_open_clip_checkpoint(model(layout, part), whole, prefix)
    return converters.convert_ldm_clip_checkpoint(whole, prefix)


@pytest.mark.parametrize(("layout", "part"), [pair for pair in PARTS if pair != ("flux1", "text_encoder_2")])
def test_names_are_those_that_diffusers_reads(layout: str, part: str) -> None:
    """Each weight carries a number of its own, so that layers of the same shape cannot be swapped unnoticed."""
    weights = numbered(model(layout, part).state_dict())
    read = as_diffusers_reads_it(layout, part, original(layout, part, weights))
    plain = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in read.items()}
    assert theirs.keys() == plain.keys()
    for name, tensor in plain.items():
        assert theirs[name].shape == tensor.shape, name
        assert torch.equal(theirs[name], tensor), name


def numbered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of as many rows, but of one column, in which weight and row can be told from the value."""
    made = {}
    for k, (name, tensor) in enumerate(weights.items()):
        rows = torch.arange(tensor.shape[0], dtype=torch.float64) + 100_000 * k
        made[name] = rows if tensor.ndim == 1 else rows[:, None].expand(-1, columns(name, tensor)).contiguous()
    return made


def columns(name: str, tensor: Tensor) -> int:
    return tensor.shape[1] if name == "text_projection.weight" else 1  # which is turned, and tells the width


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_modules_by_their_original_paths(layout: str) -> None:
    """Some tools name LoRA layers so. Examples as sd-scripts' files have them."""
    paths = original_modules(shapes_of(model(layout, "unet").state_dict()))
    if layout == "sdxl":
        assert paths["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"] == (
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
        )
        assert paths["up_blocks.0.attentions.2.proj_in"] == "output_blocks.2.1.proj_in"
        assert paths["mid_block.attentions.0.transformer_blocks.9.ff.net.2"] == (
            "middle_block.1.transformer_blocks.9.ff.net.2"
        )
    else:
        assert paths["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
        assert paths["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert len(set(paths.values())) == len(paths)


SMALLER = {
    # segmind/SSD-1B and KOALA: as published, but with fewer channels
    "one depth for each transformer": {
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
    },
    "no middle": {"mid_block_type": None, "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 5]},
    "no attention on the way up": {"up_block_types": ["UpBlock2D"] * 3},
    "as many layers as one likes": {"layers_per_block": [1, 2, 3]},
    "inpainting": {"in_channels": 9},
}


@pytest.mark.parametrize("change", SMALLER.values(), ids=SMALLER.keys())
def test_other_builds_of_sdxl(change: dict[str, Any]) -> None:
    """What distillers made of SDXL opens as it is: built from the shapes, it has the same weights."""
    given = {**SDXL.config("unet"), "block_out_channels": [64, 64, 128], "attention_head_dim": [1, 1, 2]}
    weights = model("sdxl", "unet", {**given, **change}).state_dict()
    for named in (weights, original("sdxl", "unet", weights)):
        found = SDXL.parts["unet"].describe(SDXL.config("unet"), shapes_of(named))
        assert found is not None
        built = model("sdxl", "unet", found[0]).state_dict()
        assert shapes_of(built) == shapes_of(weights)
        assert {found[1](name).name for name in built} == named.keys()
