"""What a compiler is given of LoRAs on linear layers: the formula in float64, and what layers of one tensor share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig
from trainer_core.families.parts.linear import outputs

D, TOKENS, RANK = 24, 40, 4
SCALE = 0.25


class Attention(nn.Module):
    """Queries, keys and values of one tensor."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, D, bias=bias) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return product(outputs((self.q, self.k, self.v), x))


def product(three: Sequence[Tensor]) -> Tensor:
    q, k, v = three
    return torch.tanh(q) * torch.sigmoid(k) + v


def made(bias: bool = True, **config: float) -> tuple[Attention, Adapter]:
    torch.manual_seed(0)
    model = Attention(bias)
    adapter = Adapter(model, AdapterConfig(rank=RANK, alpha=RANK * SCALE, **config), ("q", "k", "v"), seed=1)
    state = {name: value + torch.randn(value.shape) * 0.2 for name, value in adapter.state_dict().items()}
    adapter.load_state_dict(state)
    return model, adapter


def gradients(model: nn.Module, adapter: Adapter, x: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(model(x).square().sum(), [x, *adapter.parameters()])
    return [one.double() for one in found]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_formula_and_its_gradient(bias: bool) -> None:
    model, adapter = made(bias)
    x = torch.randn(2, TOKENS // 2, D, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    trained = [one.detach().double().requires_grad_() for one in adapter.parameters()]
    of = dict(zip([id(one) for one in adapter.parameters()], trained, strict=True))
    three = []
    for layer in (model.q, model.k, model.v):
        frozen = layer.base_layer.double()  # type: ignore[operator, union-attr]
        down, up = (of[id(layer.trained[f"lora_{which}.weight"])] for which in "AB")  # type: ignore[index, union-attr]
        three.append(exact @ (frozen.weight + SCALE * up @ down).T + (frozen.bias if bias else 0))
        layer.base_layer.float()  # type: ignore[operator, union-attr]
    expected = product(three)
    expected_gradients = torch.autograd.grad(expected.square().sum(), [exact, *trained])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).double(), expected, rtol=1e-5, atol=1e-5)
    for found, right in zip(gradients(compiled, adapter, x), expected_gradients, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-4)


def test_layers_of_one_tensor_share_what_reads_it() -> None:
    model, adapter = made()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, TOKENS // 2, D, requires_grad=True)
    gradients(compiled, adapter, x)  # compiles both passes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        gradients(compiled, adapter, x)
    products = sum(one.count for one in seen.key_averages() if one.key in ("aten::mm", "aten::addmm"))
    assert products == 3 * 5 + 3, "of each W x, B h, g W, g B and hᵀ g; of all A x, gh A and ghᵀ x"


@pytest.mark.parametrize("off", ["dropout", "one is off", "one is not adapted"])
def test_what_has_nothing_to_share_is_computed_as_ever(off: str) -> None:
    model, adapter = made(dropout=0.5 if off == "dropout" else 0.0)
    if off == "one is off":
        model.k.enabled = False
    if off == "one is not adapted":
        model.v = model.v.base_layer  # type: ignore[assignment]
    for place, layer in enumerate(adapter.layers.values()):
        layer.dropout.place = ("train", place)
    x = torch.randn(2, TOKENS // 2, D)
    expected = model(x)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
