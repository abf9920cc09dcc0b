"""Layers are what they can do: their sizes, their weight where it can be read, and adapters on them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.operations import dense_weight, operation_of
from trainer_core.config import AdapterConfig
from trainer_core.errors import AdapterError

from .packed_layers import PackedConv, PackedLinear
from .small_sdxl import dense

KINDS = ["lora", "dora", "lokr", "loha"]


class Bank(nn.Module):
    """Weights of several experts, as ComfyUI's MoEExperts: it is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features, self.weight = 4, 6, nn.Parameter(torch.zeros(3, 6, 4))


class Wide(nn.Sequential):
    """A block that tells its sizes, as timm's do."""

    in_features, out_features = 4, 6


class Unreadable(PackedLinear):
    """A layer whose weight only its kernel knows."""

    dequantize = None  # type: ignore[assignment]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, PackedLinear.dequantize(self), self.bias)


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 6), (6, 4)),
        (PackedLinear(nn.Linear(4, 6)), (6, 4)),
        (nn.Conv1d(4, 6, 3), (6, 4, 3)),
        (nn.Conv2d(4, 6, (3, 1), padding="same"), (6, 4, 3, 1)),
        (PackedConv(nn.Conv2d(4, 6, 3)), (6, 4, 3, 3)),
        (nn.Conv3d(4, 6, (1, 2, 2)), (6, 4, 1, 2, 2)),
        (nn.Conv2d(4, 6, 3, groups=2), None),
        (nn.Conv2d(4, 6, 3, padding_mode="circular"), None),
        (nn.ConvTranspose2d(4, 6, 3), None),
        (nn.Embedding(4, 6), None),
        (nn.LayerNorm(4), None),
        (nn.Bilinear(4, 4, 6), None),
        (Wide(nn.Linear(4, 6)), None),
        (Bank(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_sizes_are_those_of_the_weight_that_the_layer_stands_for(layer: nn.Module, shape: tuple[int, ...]) -> None:
    operation = operation_of(layer)
    assert (operation and operation.weight_shape) == shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3, stride=2), nn.Conv3d(4, 6, (1, 3, 2), padding=1)])
def test_convolutions_over_other_dimensions(layer: Any, kind: str) -> None:
    """Against the operation with W + ΔW, or what DoRA's paper makes of that."""
    model = nn.ModuleDict({"layer": copy.deepcopy(layer)})
    adapter = Adapter(model, AdapterConfig(type=kind, rank=2, alpha=1.0), ["layer"], 1)  # type: ignore[arg-type]
    adapter.load_state_dict(
        {name: value + torch.randn(value.shape) * 0.3 for name, value in adapter.state_dict().items()}
    )
    weight = layer.weight + dense(adapter.deltas()["layer"]).view(layer.weight.shape)
    if kind == "dora":
        norms = weight.flatten(1).norm(dim=1)
        weight = weight * (adapter.state_dict()["layer.magnitude"] / norms).view(-1, 1, *(1 for _ in layer.kernel_size))
    x = torch.randn(2, 4, *(7 for _ in layer.kernel_size))
    expected = torch.func.functional_call(layer, {"weight": weight}, x)
    torch.testing.assert_close(model["layer"](x), expected, rtol=1e-5, atol=1e-5)


# --- weights ---------------------------------------------------------------------------------------------------------


class Scaled(Tensor):
    """A tensor that knows how to be read, as those of ComfyUI, torchao and quanto."""

    def dequantize(self) -> Tensor:
        return self.as_subclass(Tensor).float() / 10


def with_weight(weight: Any, **others: Any) -> nn.Module:
    layer = nn.Linear(3, 2)
    del layer.weight
    layer.weight = weight
    for name, value in others.items():
        setattr(layer, name, value)
    return layer


def test_a_weights_own_dequantize_comes_before_the_modules() -> None:
    codes = torch.arange(6, dtype=torch.uint8).view(2, 3)
    expected = torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]])
    weight = nn.Parameter(codes.as_subclass(Scaled), requires_grad=False)
    torch.testing.assert_close(dense_weight(with_weight(weight)), expected)
    torch.testing.assert_close(dense_weight(with_weight(weight, dequantize=lambda: expected + 1)), expected)
    torch.testing.assert_close(dense_weight(with_weight(codes, dequantize=lambda: expected + 1)), expected + 1)


def test_a_plain_weight_is_read_as_it_is() -> None:
    for layer in (nn.Linear(3, 2), nn.Conv1d(3, 2, 3, dtype=torch.bfloat16)):
        assert dense_weight(layer) is layer.weight
    layer = with_weight(torch.ones(2, 3).to(torch.float8_e4m3fn))
    assert dense_weight(layer).dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (with_weight(None), "it has none"),
        (with_weight(torch.zeros(3, dtype=torch.uint8)), r"packed as \(3,\), torch.uint8"),
        (with_weight(torch.zeros(2, 3, dtype=torch.int8)), r"packed as \(2, 3\), torch.int8"),
        (with_weight(torch.zeros(3, 2)), r"packed as \(3, 2\)"),
        (
            with_weight(torch.zeros(2, 3, dtype=torch.float8_e5m2), scale=nn.Parameter(torch.ones(2))),
            "float8_e5m2 with scales",
        ),
    ],
    ids=["nothing", "packed", "integers", "transposed", "scaled apart"],
)
def test_why_a_weight_cannot_be_read(layer: nn.Module, reason: str) -> None:
    with pytest.raises(AdapterError, match=f"the weight of this Linear cannot be read: .*{reason}"):
        dense_weight(layer)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_weight_a_layer_gets_all_but_dora(kind: str) -> None:
    model = nn.Sequential(Unreadable(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2))
    config = AdapterConfig(type=kind, rank=2)  # type: ignore[arg-type]
    if kind == "dora":
        with pytest.raises(AdapterError, match=r"^adapter.type: 0: the weight of this Unreadable .*uint8"):
            Adapter(model, config, ["0"], 1)
        return
    adapter = Adapter(model, config, ["0"], 1)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = (model(torch.ones(1, 4)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_gradient_that_needs_a_weight_that_cannot_be_read_is_told() -> None:
    """Rather than layers before it training by a part of their gradient."""
    model = nn.Sequential(nn.Linear(4, 4), Unreadable(nn.Linear(4, 6)))
    Adapter(model, AdapterConfig(rank=2), [r"\d"], 1)
    with pytest.raises(AdapterError, match="Unreadable"):
        model(torch.ones(1, 4)).sum().backward()


# --- the wrapped layer -----------------------------------------------------------------------------------------------


def test_models_may_ask_the_wrapped_layer_for_what_it_was() -> None:
    layer = PackedConv(nn.Conv2d(4, 6, 3, stride=2))
    layer.comfy_cast_weights = True
    model = nn.ModuleDict({"layer": layer})
    keys = set(model.state_dict())
    Adapter(model, AdapterConfig(rank=2), ["layer"], 1)
    for wrapped in (model["layer"], copy.deepcopy(model)["layer"]):
        assert (wrapped.in_channels, wrapped.out_channels, wrapped.kernel_size, wrapped.stride) == (
            4,
            6,
            (3, 3),
            (2, 2),
        )
        assert torch.equal(wrapped.weight, layer.weight)
        assert wrapped.bias is wrapped.base_layer.bias
        with pytest.raises(AttributeError):
            _ = wrapped.in_features
        assert not hasattr(wrapped, "comfy_cast_weights"), "ComfyUI would take it for a layer of its own"
    trained = {"layer.lora_A_weight", "layer.lora_B_weight"}
    assert set(model.state_dict()) == {key.replace("layer.", "layer.base_layer.") for key in keys} | trained


# --- layers of others ------------------------------------------------------------------------------------------------


def quantized(library: str) -> tuple[nn.Module, Tensor]:
    """A linear layer (64 to 32) of a library, and its weight as the library gives it."""
    weight = torch.randn(32, 64) / 8
    if library.startswith("bitsandbytes"):
        bnb = pytest.importorskip("bitsandbytes")
        if library.endswith("4 bit"):
            layer = bnb.nn.LinearNF4(64, 32)
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            layer = layer.to("cpu")
            return layer, bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        layer = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        layer = layer.to("cpu")
        return layer, layer.weight.data * layer.weight.SCB[:, None] / 127
    if library == "torchao":
        torchao = pytest.importorskip("torchao.quantization")
        model = nn.Sequential(nn.Linear(64, 32))
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        return model[0], F.linear(torch.eye(64), model[0].weight).T.detach()
    quanto = pytest.importorskip("optimum.quanto")
    model = nn.Sequential(nn.Linear(64, 32))
    quanto.quantize(model, weights=quanto.qint4)
    quanto.freeze(model)
    return model[0], F.linear(torch.eye(64), model[0].weight).T.detach()


def test_what_inference_packs_otherwise_is_read() -> None:
    """As bitsandbytes does on some CPUs, which leaves no trace in the weight's shape as it is read."""
    layer, weight = quantized("bitsandbytes 4 bit")
    with torch.no_grad():
        layer.eval()(torch.ones(1, 64))
    torch.testing.assert_close(dense_weight(layer), weight, rtol=2**-8, atol=0)  # its scales are bfloat16 now


@pytest.mark.parametrize("library", ["bitsandbytes 4 bit", "bitsandbytes 8 bit", "torchao", "quanto"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_layers_train_as_the_weights_that_they_stand_for(library: str, kind: str) -> None:
    layer, weight = quantized(library)
    plain = nn.Linear(64, 32)
    plain.load_state_dict({"weight": weight, "bias": layer.bias})
    first = nn.Linear(64, 64)
    models = [nn.Sequential(copy.deepcopy(first), nn.Tanh(), last) for last in (layer, plain)]
    config = AdapterConfig(type=kind, rank=2)  # type: ignore[arg-type]
    theirs, ours = (Adapter(model, config, ["[02]"], 1) for model in models)
    state = {name: value + torch.randn(value.shape) / 10 for name, value in ours.state_dict().items()}
    for adapter in (theirs, ours):
        adapter.load_state_dict(state)
    x = torch.randn(5, 64)
    outputs = [model(x) for model in models]
    for output in outputs:
        output.square().sum().backward()
    error = 2e-2 if "8 bit" in library else 1e-5  # its inputs are rounded to 8 bits too
    for mine, its in zip([*ours.parameters(), outputs[1]], [*theirs.parameters(), outputs[0]], strict=True):
        mine, its = (mine, its) if mine is outputs[1] else (mine.grad, its.grad)
        assert (mine - its).norm() <= error * mine.norm()
