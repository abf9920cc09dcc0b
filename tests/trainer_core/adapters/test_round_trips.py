"""Files of all kinds of adapter, there and back: what they do is kept, and what cannot be is told."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.applied import applied_text
from trainer_core.adapters.comfy_format import to_comfy
from trainer_core.adapters.deltas import Delta
from trainer_core.adapters.export_as import to_kohya
from trainer_core.adapters.key_names import split_text
from trainer_core.adapters.parsing import for_modules, for_roots, parse
from trainer_core.adapters.peft_format import to_peft
from trainer_core.config import AdapterConfig
from trainer_core.errors import AdapterError
from trainer_core.families.base import Base
from trainer_core.families.stable_diffusion.sdxl import StableDiffusionXL

from .packed_layers import dequantized, packed
from .small_sdxl import CONV, TO_Q, adapted, dense, outputs

KINDS = {
    "lora": AdapterConfig(rank=3, alpha=1.5, conv_rank=2, conv_alpha=1.0, targets="all", text_encoders=True),
    "dora": AdapterConfig(type="dora", rank=3, conv_rank=2, targets="all", text_encoders=True),
    "lokr": AdapterConfig(type="lokr", rank=1, alpha=2.0, conv_rank=1, factor=4, targets="all", text_encoders=True),
    "lokr, whole": AdapterConfig(type="lokr", rank=999, alpha=5.0, conv_rank=999, targets="all", text_encoders=True),
    "loha": AdapterConfig(type="loha", rank=2, alpha=1.0, conv_rank=2, targets="all", text_encoders=True),
}


@pytest.mark.parametrize("layers", ["torch's", "packed"])
@pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
def test_there_and_back(
    config: AdapterConfig, layers: str, sdxl: Base, unet: nn.Module, encoders: dict[str, nn.Module]
) -> None:
    if layers == "packed":
        unet = packed(unet)
        encoders = {name: packed(encoder) for name, encoder in encoders.items()}
    plain = copy.deepcopy(unet)
    adapter = adapted(sdxl, unet, encoders, config)
    file = to_comfy(adapter.deltas(), sdxl, torch.float32)
    back = for_roots(parse(file), {"": plain, **encoders}, sdxl)
    assert back.keys() == adapter.layers.keys()
    for name, change in adapter.deltas().items():
        torch.testing.assert_close(dense(back[name]), dense(change), rtol=1e-5, atol=1e-6)
    fresh = adapted(sdxl, plain, encoders, config)
    fresh.start_from(back)
    for name, value in adapter.state_dict().items():
        if "lokr" not in name:  # its scale may have moved into a factor
            torch.testing.assert_close(fresh.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    for mine, its in zip(outputs(plain), outputs(unet), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
def test_other_forms_of_a_packed_models_adapter_are_those_of_its_weights(
    config: AdapterConfig, sdxl: Base, unet: nn.Module
) -> None:
    plain = packed(unet)
    deltas = adapted(sdxl, packed(unet), {}, config.but(text_encoders=False)).deltas()
    forms = []
    for model in (plain, dequantized(plain)):
        peft = to_peft(deltas, model)
        forms.append((peft.settings, peft.tensors, to_kohya(deltas, {"": model}, sdxl)))
    assert forms[0][0] == forms[1][0]
    for mine, its in zip(forms[0][1:], forms[1][1:], strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) for key in its)


def test_the_files_precision_is_not_doras(sdxl: Base, unet: nn.Module) -> None:
    """A bfloat16 factor would round the whole weight."""
    adapter = adapted(sdxl, unet, {}, KINDS["dora"].but(text_encoders=False))
    file = to_comfy(adapter.deltas(), sdxl, torch.bfloat16)
    for name, value in file.items():
        exact = name.endswith((".alpha", ".dora_scale"))
        assert value.dtype == (torch.float32 if exact else torch.bfloat16), name
    assert file[f"lora_unet_{CONV.replace('.', '_')}.dora_scale"].shape == (64, 1, 1, 1)
    assert file[f"lora_unet_{TO_Q.replace('.', '_')}.dora_scale"].shape == (64, 1)
    assert file[f"lora_unet_{CONV.replace('.', '_')}.lora_up.weight"].shape == (64, 2, 1, 1)


def test_a_lora_on_text_encoders_is_applied_to_them(
    sdxl: Base, unet: nn.Module, encoders: dict[str, nn.Module]
) -> None:
    adapter = adapted(sdxl, copy.deepcopy(unet), encoders, KINDS["lora"])
    ids = torch.tensor([[1, 5, 7, 2]])
    expected = {name: model(ids).last_hidden_state for name, model in adapter.roots.items() if name}
    _, text = split_text(parse(to_comfy(adapter.deltas(), sdxl, torch.float32)))
    assert len(text) == 2 * 2 * 6

    class Loaded(StableDiffusionXL):
        def text_encoders(self) -> dict[str, nn.Module]:
            return encoders

    with applied_text(object.__new__(Loaded), text, 1.0):
        for name, model in encoders.items():
            torch.testing.assert_close(model(ids).last_hidden_state, expected[name], rtol=1e-5, atol=1e-5)
    for name, model in encoders.items():
        assert not torch.allclose(model(ids).last_hidden_state, expected[name], rtol=1e-3)


# --- to go on training from ------------------------------------------------------------------------------------------


def started(sdxl: Base, unet: nn.Module, config: AdapterConfig, deltas: Mapping[str, Delta]) -> Adapter:
    adapter = Adapter(unet, config, sdxl.spec.targets["all"], seed=2, conv_targets=sdxl.spec.conv_targets)
    adapter.start_from(deltas)
    return adapter


@pytest.mark.parametrize(
    ("of", "config"),
    [
        ("lora", AdapterConfig(rank=8, conv_rank=4, conv_alpha=1.0)),
        ("lora", AdapterConfig(type="dora", rank=8, conv_rank=4)),
        ("dora", AdapterConfig(type="dora", rank=4, alpha=1.0, conv_rank=2)),
        ("lokr", AdapterConfig(type="lokr", rank=1, alpha=0.5, conv_rank=1, factor=4)),
        ("lokr", AdapterConfig(type="lokr", rank=999, conv_rank=999, factor=4)),
        ("loha", AdapterConfig(type="loha", rank=2, alpha=4.0, conv_rank=2)),
    ],
)
def test_what_a_file_does_is_kept(of: str, config: AdapterConfig, sdxl: Base, unet: nn.Module) -> None:
    """In another scale or a larger rank, and a LoRA as a DoRA."""
    plain = copy.deepcopy(unet)
    adapter = adapted(sdxl, unet, {}, KINDS[of].but(text_encoders=False))
    file = parse(to_comfy(adapter.deltas(), sdxl, torch.float32))
    other = started(sdxl, plain, config, for_modules(file, copy.deepcopy(plain), sdxl))
    for mine, its in zip(outputs(plain), outputs(unet), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    assert for_modules(file, plain, sdxl).keys() == other.layers.keys(), "an adapted model has the same layers"


@pytest.mark.parametrize(
    ("of", "config", "message"),
    [
        ("dora", AdapterConfig(rank=3, conv_rank=2), "DoRA"),
        ("lora", AdapterConfig(rank=2, conv_rank=2), "rank is 3"),
        ("lora", AdapterConfig(rank=3), "targets leave out"),
        ("lora", AdapterConfig(type="lokr", rank=3, conv_rank=2), "is a LoRA"),
        ("lokr", AdapterConfig(rank=3, conv_rank=2), "is a LoKr"),
        ("lokr", AdapterConfig(type="lokr", rank=1, conv_rank=1, factor=2), r"adapter\.factor"),
        ("lokr, whole", AdapterConfig(type="lokr", rank=1, conv_rank=1), r"higher adapter\.rank"),
        ("loha", AdapterConfig(type="loha", rank=3, conv_rank=3), "rank is 2"),
    ],
)
def test_what_cannot_be_represented_is_told(
    of: str, config: AdapterConfig, message: str, sdxl: Base, unet: nn.Module
) -> None:
    plain = copy.deepcopy(unet)
    adapter = adapted(sdxl, unet, {}, KINDS[of].but(text_encoders=False))
    file = parse(to_comfy(adapter.deltas(), sdxl, torch.float32))
    with pytest.raises(AdapterError, match=message):
        started(sdxl, plain, config, for_modules(file, copy.deepcopy(plain), sdxl))
