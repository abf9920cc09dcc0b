"""A frozen layer of packed weights: its product, its gradient, what it keeps, and what others see of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer_core.adapters.operations import Operation, dense_weight, device_of, operation_of
from trainer_core.memory.formats import NAMES, encode
from trainer_core.memory.packed_linear import PackedLinear


def made(name: str, bias: bool = True, branch: bool = False) -> PackedLinear:
    torch_state = torch.Generator().manual_seed(3)
    linear = nn.Linear(80, 48, bias)
    with torch.no_grad():
        for one in linear.parameters():
            one.copy_(torch.randn(one.shape, generator=torch_state))
    layer = PackedLinear.from_linear(linear, name)
    if branch:
        layer.low_rank_down = torch.randn(3, 80, generator=torch_state)
        layer.low_rank_up = torch.randn(48, 3, generator=torch_state)
    return layer


def given(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_()


def reference(layer: PackedLinear) -> Tensor:
    """The weight (out, in) that the layer stands for, in float64."""
    weight = layer.packed.decode(torch.float64)
    if layer.low_rank_down is None or layer.low_rank_up is None:
        return weight
    return weight + layer.low_rank_up.double() @ layer.low_rank_down.double()


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradient_are_those_of_the_decoded_weight(name: str, bias: bool, branch: bool) -> None:
    layer, x, upstream = made(name, bias, branch), given(2, 5, 80), torch.randn(2, 5, 48)
    weight = reference(layer)
    y = layer(x)
    y.backward(upstream)
    expected = F.linear(x.detach().double(), weight, None if layer.bias is None else layer.bias.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), upstream.double() @ weight, rtol=1e-5, atol=1e-4)  # type: ignore[union-attr]
    torch.testing.assert_close(layer.input_gradient(upstream), x.grad, rtol=0, atol=0)
    torch.testing.assert_close(layer.dequantize().double(), weight, rtol=1e-5, atol=1e-5)


def test_gradient_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(made("4bit", branch=True).double(), given(3, 80, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_as_exact_as_a_plain_layer_of_the_same_weight(name: str) -> None:
    layer, x, upstream = (
        made(name).to(torch.bfloat16),
        given(6, 80, dtype=torch.bfloat16),
        torch.randn(6, 48).bfloat16(),
    )
    y = layer(x)
    y.backward(upstream)
    expected = F.linear(x.detach().double(), reference(layer), layer.bias.double())  # type: ignore[union-attr]
    gradient = upstream.double() @ reference(layer)
    assert y.dtype == x.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert (y.double() - expected).norm() < 0.006 * expected.norm()
    assert (x.grad.double() - gradient).norm() < 0.006 * gradient.norm()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_for_the_backward_pass(name: str) -> None:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        y = made(name, branch=True)(given(7, 80))
    assert not kept
    assert y.requires_grad
    assert not [one for one in vars(y.grad_fn).values() if isinstance(one, Tensor)]


@pytest.mark.parametrize("name", ["float8", "int8", "6bit"])
def test_compiled_it_keeps_no_unpacked_weight(name: str) -> None:
    """What is kept is chosen as on any device, but no code is made for one."""
    layer, x, kept = made(name), given(7, 80), []
    torch.compiler.reset()
    compiled = torch.compile(lambda x: layer(x).tanh(), backend="aot_eager_decomp_partition", fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        y = compiled(x)
    y.sum().backward()
    gradient, x.grad = x.grad, None
    layer(x).tanh().sum().backward()
    torch.testing.assert_close(gradient, x.grad)
    assert max(one.numel() for one in kept if one.is_floating_point() and one.itemsize > 1) <= 7 * 48


def test_the_weight_is_read_where_it_is_when_the_backward_pass_needs_it() -> None:
    """Streamed blocks: their tensors are attributes, and others by then."""
    layer, x = made("6bit"), given(3, 80)
    expected = torch.ones(3, 48) @ layer.dequantize()
    buffers = dict(layer.named_buffers())
    for name in buffers:
        delattr(layer, name)
        setattr(layer, name, buffers[name].clone())
    y = layer(x)
    for name, buffer in buffers.items():
        getattr(layer, name).zero_()
        setattr(layer, name, buffer)
    y.sum().backward()
    assert operation_of(layer) == Operation(48, 80)
    assert torch.equal(x.grad, expected)  # type: ignore[arg-type]


def test_it_computes_in_the_precision_of_autocast() -> None:
    layer, x = made("int8"), given(4, 80)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        expected = F.linear(x, layer.packed.decode(), layer.bias)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_casting_leaves_the_packed_weight_as_it_is(name: str) -> None:
    layer = made(name, branch=True)
    before = {key: value.clone() for key, value in layer.packed.tensors().items()}
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    assert all(torch.equal(value, before[key]) for key, value in cast.packed.tensors().items())
    floating = (cast.bias, cast.low_rank_down, cast.dequantize(), cast.weight)
    assert {value.dtype for value in floating if value is not None} == {torch.bfloat16}
    assert layer.dequantize().dtype == torch.float32
    assert not list(layer.parameters())
    assert layer.to("meta").weight.device == layer.device == torch.device("meta")


@pytest.mark.parametrize("name", NAMES)
def test_its_state_fills_another_layer(name: str) -> None:
    layer, other = made(name), PackedLinear(encode(torch.ones(48, 80), name), torch.zeros(48))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(given(3, 80)), layer(given(3, 80)))


def test_what_asks_for_the_weight_gets_it_unpacked() -> None:
    layer, x = made("5bit").to(torch.bfloat16), given(3, 80, dtype=torch.bfloat16)
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device) == ((48, 80), torch.bfloat16, torch.device("cpu"))
    assert not weight.requires_grad
    assert torch.equal(weight.float(), layer.dequantize().float())
    assert torch.equal(F.linear(x, weight), F.linear(x, layer.dequantize()))
    assert torch.equal(dense_weight(layer), layer.dequantize())
    assert operation_of(layer) == Operation(48, 80)
    assert device_of(layer) == torch.device("cpu")


def test_it_computes_without_a_graph_in_inference_mode() -> None:
    layer = made("3bit")
    with torch.inference_mode():
        inside = layer(torch.ones(2, 80))
    assert torch.equal(inside.clone(), layer(torch.ones(2, 80)))
    y = layer(given(2, 80))
    y.sum().backward()
