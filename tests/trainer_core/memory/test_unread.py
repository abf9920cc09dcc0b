"""Products that a recomputed block leaves out because nobody reads them, and all the ways in which somebody does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer_core.memory.blocks import blocks_of
from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.saved import mutable_saved

from .models import adapted, flux, gradients, products

aten = torch.ops.aten


class Product(torch.autograd.Function):
    """x W, or as many NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, skips: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_full((len(x), weight.shape[1]), float("nan")) if skips else x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient, None


class Layer(nn.Module):
    """A trained layer that tells how often its product was left out."""

    skips_product = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)))
        self.skipped = 0

    def forward(self, x: Tensor) -> Tensor:
        self.skipped += self.skips_product
        return Product.apply(x, self.weight, self.skips_product)


class Block(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.last, self.function = Layer(1), Layer(2), function

    def forward(self, x: Tensor, **options: Any) -> Any:
        return self.function(x, self.last(self.first(x).tanh()), **options)


def results(function: Callable[..., Any], recomputed: bool, **options: Any) -> tuple[list[Tensor], Block]:
    """The gradients of three passes, by the third of which it is known what can be left out."""
    block = Block(function)
    if recomputed:
        recompute_blocks(block, [block])
    found = []
    for _ in range(3):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(5)).requires_grad_()
        with mutable_saved():
            said = block(x * 1, **options)
            sum(one.float().square().sum() for one in (said if isinstance(said, tuple) else (said,))).backward()
        assert x.grad is not None
        found += [x.grad, *(one.grad for one in block.parameters())]
        block.zero_grad()
    return found, block


def check(function: Callable[..., Any], skipped: int) -> None:
    expected, _ = results(function, recomputed=False)
    found, block = results(function, recomputed=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert block.last.skipped == skipped
    assert block.first.skipped == 0


def adds_to_its_input(x: Tensor, y: Tensor) -> Tensor:
    x += y * 0.5
    return x


GATE = torch.tensor([0.5, 1.0, -1.0, 2.0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: y,
        lambda x, y: x + y,
        lambda x, y: x + GATE * y,
        lambda x, y: torch.addcmul(x, y, GATE),
        lambda x, y: torch.cat([x, y - x], dim=1)[:, 2:].reshape(2, 9).mT,
        lambda x, y: (x.bfloat16() + y.to(torch.bfloat16), y.chunk(2, 1)[1] / 2),
        lambda x, y: x.tanh() + y.view(3, 2, 2).transpose(1, 2).flatten(1),
        adds_to_its_input,
    ],
)
def test_what_is_only_added_up_is_left_out(function: Callable[..., Any]) -> None:
    check(function, skipped=2)


class Gated(torch.autograd.Function):
    """x + gate y; it remembers y in a way of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.y = y
        return x + y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.y.square(), gradient


ELSEWHERE = torch.zeros(3, 4)


def writes_elsewhere(x: Tensor, y: Tensor) -> Tensor:
    ELSEWHERE.copy_(y.detach())
    return x * ELSEWHERE.clone() + y


def in_numpy(x: Tensor, y: Tensor) -> Tensor:
    return x * float(y.detach().numpy().sum()) + y


def writes_into_what_is_read(x: Tensor, y: Tensor) -> Tensor:
    both = torch.zeros(2, 3, 4)
    both[0] = y
    return x + both.sum(0).sigmoid()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: y.relu(),
        lambda x, y: x + y * x,
        lambda x, y: x + nn.functional.layer_norm(x + y, (4,)),
        lambda x, y: (x + y).clip(-0.1, 0.1),
        lambda x, y: torch.nan_to_num(x + y, posinf=0.5),
        lambda x, y: x * y.detach().sigmoid() + y,
        lambda x, y: x + y * 2 if (x + y).isnan().any() else x * 2 + y,
        lambda x, y: x + y * 2 if (x + y).data.sum().item() > 1000 else x * 2 + y,
        lambda x, y: x * sum((x + y).detach().flatten().tolist()) + y,
        lambda x, y: x * (y > 0) + y,
        lambda x, y: Gated.apply(x, y),
        in_numpy,
        writes_elsewhere,
        writes_into_what_is_read,
    ],
)
def test_what_is_read_in_any_way_is_computed(function: Callable[..., Any]) -> None:
    check(function, skipped=0)


def test_each_way_to_call_a_block_is_learned_by_itself() -> None:
    """What its arguments say, the shapes and which of them need a gradient; where they cannot tell, it is computed."""

    def function(x: Tensor, y: Tensor, keep: Any = None, gate: Any = None) -> Tensor:
        y = y if gate is None else y * gate
        return x + (y.sigmoid() if keep else y)

    block = Block(function)
    recompute_blocks(block, [block])
    gate, trained = torch.ones(4), torch.ones(4, requires_grad=True)
    for options, skipped in (
        ({}, False),
        ({}, True),
        ({"keep": {"it": [1]}}, False),
        ({}, True),
        ({"keep": {"it": [1]}}, False),
        ({"gate": gate}, False),
        ({"gate": gate}, True),
        ({"gate": trained}, False),
        ({"gate": trained}, False),
        ({"gate": gate}, True),
        ({"keep": lambda: True}, False),
        ({"keep": object()}, False),
    ):
        before = block.last.skipped
        block(torch.ones(2, 4), **options).sum().backward()
        assert (block.last.skipped > before) == skipped, options


def test_an_exception_leaves_no_layer_that_leaves_its_product_out() -> None:
    block = Block(lambda x, y: x + y)
    recompute_blocks(block, [block])
    for _ in range(2):
        block(torch.ones(2, 4)).sum().backward()
    said = block(torch.ones(2, 4)).sum()
    block.function = lambda x, y: 1 / 0
    with pytest.raises(ZeroDivisionError):
        said.backward()
    assert not block.last.skips_product


def test_the_last_products_of_flux_are_left_out() -> None:
    """Those of both streams in a double block and the one of a single block, and nothing else; the LoRA's part too."""
    model = flux(double=1, single=1)
    adapter = adapted(model)
    recompute_blocks(model, blocks_of(model).values())
    first, second = (products(lambda: gradients(model, adapter)) for _ in range(2))
    assert not second - first
    assert {shapes[1:] for (operation, shapes) in first - second if operation is aten.addmm} == set_of_last(model)
    assert (first - second).total() == 3


def set_of_last(model: nn.Module) -> set[Any]:
    """The operands of the products, without the bias: (tokens, in) and (in, out)."""
    places = {"transformer_blocks.0.ff.net.2": 24, "transformer_blocks.0.ff_context.net.2": 10}
    places["single_transformer_blocks.0.proj_out"] = 34
    layers = {path: model.get_submodule(path).base_layer for path in places}
    return {((places[path], one.in_features), (one.in_features, one.out_features)) for path, one in layers.items()}


def test_a_gate_that_is_trained_needs_the_product() -> None:
    """With modulation adapted, too, its gradient is a sum of them."""
    model = flux(double=1, single=1)
    adapter = adapted(model, leaves_out="nothing")
    recompute_blocks(model, blocks_of(model).values())
    first, second = (products(lambda: gradients(model, adapter)) for _ in range(2))
    assert first == second
    assert isinstance(first, Counter)
