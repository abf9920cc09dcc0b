"""LoRA files as kohya's, diffusers' and PEFT's tools write them are read layer by layer, and mean what they meant.

Where the tools' own code is at hand (peft, diffusers), it writes the files.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer_core.adapters.applied import applied
from trainer_core.adapters.comfy_format import to_comfy
from trainer_core.adapters.deltas import Kronecker, LowRank
from trainer_core.adapters.key_names import split_text
from trainer_core.adapters.parsing import for_modules, for_roots, parse
from trainer_core.config import AdapterConfig
from trainer_core.errors import AdapterError
from trainer_core.families.base import Base

from .small_sdxl import CONV, FC1, OUT, TO_Q, adapted, dense, outputs


def halves(out: int = 64, into: int = 64, rank: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(rank, into, generator=source), torch.randn(out, rank, generator=source)


# --- names -----------------------------------------------------------------------------------------------------------

STYLES = {
    "kohya": ("lora_unet_{_}", "lora_down.weight", "lora_up.weight"),
    "diffusers of today": ("unet.{}", "lora_A.weight", "lora_B.weight"),
    "diffusers before PEFT": ("unet.{}", "lora.down.weight", "lora.up.weight"),
    "diffusers' training scripts": ("unet.{}", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "PEFT": ("base_model.model.{}", "lora_A.weight", "lora_B.weight"),
    "PEFT with the adapter's name": ("base_model.model.{}", "lora_A.default.weight", "lora_B.default.weight"),
    "PEFT in diffusers": ("unet.base_model.model.{}", "lora_A.weight", "lora_B.weight"),
    "bare": ("{}", "lora_A", "lora_B"),
}


@pytest.mark.parametrize("path", [TO_Q, OUT])
@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_each_style_is_read(style: tuple[str, str, str], path: str, sdxl: Base, unet: nn.Module) -> None:
    name = style[0].replace("{_}", path.replace(".", "_")).replace("{}", path)
    down, up = halves()
    tensors = {f"{name}.{style[1]}": down, f"{name}.{style[2]}": up, f"{name}.alpha": torch.tensor(6.0)}
    (found,) = for_modules(parse(tensors), unet, sdxl).items()
    assert found[0] == path
    assert isinstance(found[1], LowRank)
    assert torch.equal(found[1].down, down)
    assert torch.equal(found[1].up, up)
    assert found[1].scale == 2.0


@pytest.mark.parametrize(("path", "layer"), [(TO_Q, "to_q_lora"), (OUT, "to_out_lora")])
def test_old_attention_processors_are_read(path: str, layer: str, sdxl: Base, unet: nn.Module) -> None:
    """As diffusers 0.11 to 0.21 wrote them."""
    block = path.split(".to_")[0]
    down, up = halves()
    tensors = {f"unet.{block}.processor.{layer}.down.weight": down, f"unet.{block}.processor.{layer}.up.weight": up}
    assert list(for_modules(parse(tensors), unet, sdxl)) == [path]


ORIGINAL = {
    # by hand from Stability's layout of a UNet of one residual block a level: 0 is conv_in, 1 the first level's, 2 its
    # downsampler, 3 the second level's
    TO_Q: "input_blocks.3.1.transformer_blocks.0.attn1.to_q",
    CONV: "input_blocks.3.0.in_layers.2",
    "down_blocks.0.resnets.0.conv2": "input_blocks.1.0.out_layers.3",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks.3.0.emb_layers.1",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    OUT: "middle_block.1.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.attentions.1.proj_in": "output_blocks.1.1.proj_in",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0.conv_shortcut": "output_blocks.2.0.skip_connection",
    "time_embedding.linear_1": "time_embed.0",
}


@pytest.mark.parametrize("named", ["diffusion_model.{}", "lora_unet_{_}"])
@pytest.mark.parametrize("path", ORIGINAL)
def test_original_names_are_read(path: str, named: str, sdxl: Base, unet: nn.Module) -> None:
    """kohya writes SDXL's LoRAs so."""
    original = ORIGINAL[path]
    name = named.replace("{_}", original.replace(".", "_")).replace("{}", original)
    out, into, *kernel = unet.get_submodule(path).weight.shape  # type: ignore[union-attr]
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, into, *kernel),
        f"{name}.lora_up.weight": torch.ones(out, 2, *[1 for _ in kernel]),
    }
    assert list(for_modules(parse(tensors), unet, sdxl)) == [path]


TEXT_NAMES = {
    "lora_te1_text_model_encoder_layers_1_mlp_fc1": "text_encoder",
    "lora_te_text_model_encoder_layers_1_mlp_fc1": "text_encoder",
    "lora_te2_text_model_encoder_layers_1_mlp_fc1": "text_encoder_2",
    f"text_encoder.{FC1}": "text_encoder",
    f"text_encoder_2.{FC1}": "text_encoder_2",
    f"base_model.model.{FC1}": "text_encoder",
}


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_text_encoders_are_found(name: str, sdxl: Base, unet: nn.Module, encoders: dict[str, nn.Module]) -> None:
    down, up = halves(64, 32)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    root = TEXT_NAMES[name]
    (path,) = for_roots(parse(tensors), {"": unet, **encoders}, sdxl)
    assert path in (f"{root}.{FC1}", f"{root}.{FC1.removeprefix('text_model.')}")
    assert list(for_modules(parse(tensors), encoders[root], sdxl, root)) == [path.removeprefix(f"{root}.")]
    assert split_text(parse(tensors))[0] == {}
    with pytest.raises(AdapterError, match=r"adapter\.text_encoders"):
        for_modules(parse(tensors), unet, sdxl)


# --- what they mean --------------------------------------------------------------------------------------------------


def saved_by_peft(unet: nn.Module, **settings: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A UNet with peft's LoRA of random weights, and what peft saves of it."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    targets = rf"({re.escape(TO_Q)}|{re.escape(OUT)}|{re.escape(CONV)})"
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=targets, **settings), unet)
    source = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape, generator=source) * 0.2
    return unet.eval(), {name: value.clone() for name, value in get_peft_model_state_dict(unet).items()}


@pytest.mark.parametrize("dora", [False, True])
def test_what_peft_saves_does_what_it_did(dora: bool, sdxl: Base, unet: nn.Module) -> None:
    other, tensors = saved_by_peft(copy.deepcopy(unet), use_dora=dora)
    deltas = for_modules(parse({f"base_model.model.{name}": value for name, value in tensors.items()}), unet, sdxl)
    assert deltas.keys() == {TO_Q, OUT, CONV}
    with applied(unet, deltas, 1.0):
        for mine, its in zip(outputs(unet), outputs(other), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_what_diffusers_makes_of_it_does_what_it_did(sdxl: Base, unet: nn.Module) -> None:
    """Its converters to its own older names and to kohya's."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya

    other, tensors = saved_by_peft(copy.deepcopy(unet))
    expected = outputs(other)
    older = {f"unet.{name}": value for name, value in convert_state_dict_to_diffusers(tensors).items()}
    kohya = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in tensors.items()})
    assert any(".lora.up." in name for name in older)
    assert all(name.startswith("lora_unet_") for name in kohya)
    for file in (older, kohya):
        with applied(unet, for_modules(parse(file), unet, sdxl), 1.0):
            for mine, its in zip(outputs(unet), expected, strict=True):
                torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_diffusers_reads_ours(sdxl: Base, unet: nn.Module, encoders: dict[str, nn.Module]) -> None:
    """Every layer of a file of ours, convolutions and text encoders too, has a place in diffusers' models."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    adapter = adapted(
        sdxl, unet, encoders, AdapterConfig(rank=2, alpha=1.0, targets="all", conv_rank=2, text_encoders=True)
    )
    file = to_comfy(adapter.deltas(), sdxl, torch.float32)
    found, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(file, unet_config=unet.config)
    layers = set()
    for root, model in {"unet": unet, **encoders}.items():
        part = {name.removeprefix(f"{root}."): value for name, value in found.items() if name.startswith(f"{root}.")}
        if root == "unet":
            part = convert_unet_state_dict_to_peft(part)
        else:
            part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
        modules = {re.sub(r"^text_model\.", "", name) for name, _ in model.named_modules()}
        for name in part:
            path = re.sub(r"^text_model\.", "", re.sub(r"\.lora_[AB]\.weight$", "", name))
            assert path in modules, name
            layers.add(f"{root}.{path}")
    assert len(found) == 2 * len(adapter.layers)
    assert len(layers) == len(adapter.layers)
    assert set(alphas.values()) == {1.0, 2.0}


# --- forms of LyCORIS ------------------------------------------------------------------------------------------------


def test_tucker_forms_of_convolutions(sdxl: Base, unet: nn.Module) -> None:
    """ΔW[o, i, h, w] = Σ up[o, m] mid[m, n, h, w] down[n, i], and LoKr's w2 alike."""
    source = torch.Generator().manual_seed(0)
    up, mid, down = (torch.randn(shape, generator=source) for shape in ((64, 2), (2, 2, 3, 3), (2, 32)))
    name = f"lora_unet_{CONV.replace('.', '_')}"
    tensors = {
        f"{name}.lora_up.weight": up[:, :, None, None],
        f"{name}.lora_mid.weight": mid,
        f"{name}.lora_down.weight": down[:, :, None, None],
    }
    (change,) = for_modules(parse(tensors), unet, sdxl).values()
    expected = torch.einsum("om,mnhw,ni->oihw", up, mid, down).flatten(1)
    torch.testing.assert_close(dense(change), expected, rtol=1e-5, atol=1e-5)

    w1, w2_a, w2_b = (torch.randn(shape, generator=source) for shape in ((4, 2), (2, 16), (2, 16)))
    tensors = {f"{name}.lokr_w1": w1, f"{name}.lokr_t2": mid, f"{name}.lokr_w2_a": w2_a, f"{name}.lokr_w2_b": w2_b}
    (change,) = for_modules(parse(tensors | {f"{name}.alpha": torch.tensor(1.0)}), unet, sdxl).values()
    w2 = torch.zeros(16, 16, 3, 3)
    for i in range(2):
        for j in range(2):
            w2 += torch.einsum("p,r,hw->prhw", w2_a[i], w2_b[j], mid[i, j])
    expected = 0.5 * torch.stack([torch.kron(w1, w2[:, :, h, w]) for h in range(3) for w in range(3)], -1)
    torch.testing.assert_close(dense(change), expected.flatten(1), rtol=1e-5, atol=1e-5)


def test_a_whole_lokr_has_scale_one_whatever_its_alpha(sdxl: Base, unet: nn.Module) -> None:
    """As in LyCORIS and ComfyUI."""
    name = f"lora_unet_{TO_Q.replace('.', '_')}"
    tensors = {
        f"{name}.lokr_w1": torch.ones(8, 8),
        f"{name}.lokr_w2": torch.ones(8, 8),
        f"{name}.alpha": torch.tensor(1.0),
    }
    (change,) = for_modules(parse(tensors), unet, sdxl).values()
    assert isinstance(change, Kronecker)
    assert change.scale == 1.0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"diff": (64, 64)}, "full difference"),
        ({"oft_blocks": (1, 2, 2)}, "OFT"),
        ({"a1.weight": (2, 2)}, "GLoRA"),
        ({"hada_w1_a": (64, 2), "hada_t1": (2, 2, 3, 3)}, "Tucker"),
        ({"lora_up.weight": (64, 2), "lora_down.weight": (2, 64), "dora_scale": (1, 64)}, "scales its inputs"),
        ({"lora_up.weight": (64, 2), "lora_down.weight": (2, 63)}, "does not fit"),
        ({"lokr_w1": (3, 3), "lokr_w2": (8, 8)}, "does not fit"),
        ({"hada_w1_a": (64, 2), "hada_w1_b": (2, 60), "hada_w2_a": (64, 2), "hada_w2_b": (2, 60)}, "does not fit"),
        ({"hada_w1_a": (64, 2), "hada_w1_b": (3, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64)}, "fit each other"),
        ({"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (3, 8)}, "fit each other"),
        ({"something": (1,)}, "no key of a LoRA"),
    ],
)
def test_what_no_adapter_represents_is_told(
    parts: dict[str, tuple[int, ...]], message: str, sdxl: Base, unet: nn.Module
) -> None:
    name = f"lora_unet_{TO_Q.replace('.', '_')}"
    tensors = {f"{name}.{part}": torch.ones(shape) for part, shape in parts.items()}
    read: Callable[[], Any] = lambda: for_modules(parse(tensors), unet, sdxl)  # noqa: E731
    with pytest.raises(AdapterError, match=message) as caught:
        read()
    assert "attn1_to_q" in str(caught.value)
