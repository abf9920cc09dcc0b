"""Recomputed blocks: both passes are under the same conditions, and nothing is lost or left over."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig
from trainer_core.errors import TrainingError
from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.saved import mutable_saved

from .blocks import Block, check, in_turn


def test_autocast_is_the_same_in_both_passes() -> None:
    """Also where the backward pass runs outside it; a weight that is cast twice has its gradient."""
    seen = []

    def function(layer: Any, x: Any) -> Any:
        y = layer(x)
        seen.append(y.dtype)
        return y.float().tanh()

    def around(blocks: Any, x: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return in_turn(blocks, x)

    check(function, function, around)
    assert set(seen) == {torch.bfloat16}


def test_autocast_around_the_backward_pass_too() -> None:
    """Its cache holds what the first pass cast, which has no graph."""
    block = Block(lambda layer, x: layer(x))
    recompute_blocks(block, [block])
    with mutable_saved(), torch.autocast("cpu", dtype=torch.bfloat16):
        block(torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert block.layer.weight.grad.abs().sum() > 0


def test_weights_that_come_through_one_buffer() -> None:
    """ComfyUI's partial loading casts each layer's weights into memory that the next layer's are cast into."""
    buffer = torch.zeros(64, dtype=torch.uint8)

    def through_buffer(layer: Any, x: Any) -> Any:
        weight = buffer.view(torch.float32).view(4, 4)
        weight.copy_(layer.weight.detach())
        return torch.nn.functional.linear(x, weight, layer.bias).tanh()

    def plain(layer: Any, x: Any) -> Any:
        return torch.nn.functional.linear(x, layer.weight.detach(), layer.bias).tanh()

    def gradients(function: Callable[..., Any], recomputed: bool) -> list[Any]:
        blocks = nn.ModuleList(Block(function, seed) for seed in range(3))
        if recomputed:
            recompute_blocks(blocks, blocks)
        with mutable_saved():
            in_turn(blocks, torch.ones(2, 4)).sum().backward()
        return [block.layer.bias.grad for block in blocks]

    expected = gradients(plain, recomputed=False)
    for recomputed in (False, True):
        assert all(map(torch.equal, gradients(through_buffer, recomputed), expected))


def test_dropout_is_the_same_in_both_passes() -> None:
    config = AdapterConfig(rank=2, dropout=0.5)
    found = []
    for recomputed in (False, True):
        blocks = nn.ModuleList(Block(lambda layer, x: layer(x).tanh(), seed) for seed in range(2))
        adapter = Adapter(blocks, config, [r"\d\.layer"], 0)
        for layer in adapter.layers.values():
            layer.trained["lora_B.weight"].data += 0.3
        adapter.seed_dropout(5, 1, 2)
        if recomputed:
            recompute_blocks(blocks, blocks)
        with mutable_saved():
            in_turn(blocks, torch.ones(2, 5, 4)).square().mean().backward()
        found.append([weight.grad for weight in adapter.parameters()])
    assert all(torch.equal(one, another) for one, another in zip(*found, strict=True))
    assert all(one.any() for one in found[0])


def test_nothing_is_recomputed_where_nothing_needs_a_gradient() -> None:
    """Neither a pass without gradients nor blocks before the first trained layer; neither needs the context."""
    block = Block(lambda layer, x: layer(x))
    recompute_blocks(block, [block])
    with torch.no_grad():
        block(torch.ones(1, 4, requires_grad=True))
    block.requires_grad_(False)
    assert block(torch.ones(1, 4)).grad_fn is None
    assert block.runs == 2


def test_outside_the_context_a_change_is_an_error() -> None:
    """Whoever makes it: the block, its caller, or somebody after the context in which it was allowed."""

    def changes(layer: Any, x: Any) -> Any:
        x += layer(x)
        return x

    block = Block(changes)
    recompute_blocks(block, [block])
    with pytest.raises(RuntimeError, match="changed in place"):
        block(torch.ones(1, 4)).sum().backward()
    plain = Block(lambda layer, x: layer(x))
    recompute_blocks(plain, [plain])
    given = torch.ones(1, 4)
    loss = plain(given).sum()
    given.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    with mutable_saved():
        loss = plain(torch.ones(1, 4)).sum()
    with pytest.raises(RuntimeError, match="inside the mutable_saved"):
        loss.backward()
    with mutable_saved(), pytest.raises(RuntimeError, match="inside the mutable_saved"):
        loss.backward()


def test_trained_values_that_cannot_be_seen_are_refused() -> None:
    """Their gradient would be lost without a word."""
    hidden = nn.Linear(4, 4)
    block = Block(lambda layer, x, get: layer(x) + get())
    recompute_blocks(block, [block])
    shift = hidden(torch.ones(1, 4))
    with mutable_saved():
        loss = block(torch.ones(1, 4), lambda: shift).sum()
        with pytest.raises(TrainingError, match="cannot be looked into"):
            loss.backward()


def test_blocks_of_another_model_are_refused() -> None:
    """Such as those of the model in the graph, which must not be changed."""
    block, other = Block(len), Block(len)
    with pytest.raises(ValueError, match="another model"):
        recompute_blocks(block, [block, other])
    assert "forward" not in vars(block)


@pytest.mark.parametrize("finished", [True, False])
def test_nothing_is_left_of_a_pass(finished: bool) -> None:
    """What a block was given is gone with the graph, without the garbage collector."""

    def changes(layer: Any, x: Any) -> Any:
        x += layer(x)
        return x

    def calls() -> int:
        return sum(type(one).__qualname__ == "_Call" for one in gc.get_objects())

    block = Block(changes)
    recompute_blocks(block, [block])
    gc.collect()
    before = calls()
    gc.disable()
    try:
        with mutable_saved():
            given = torch.ones(1, 4)
            gone = weakref.ref(given)
            loss = block(given).sum()
            assert calls() == before + 1
            if finished:
                loss.backward()
        del given, loss
        assert gone() is None
        assert calls() == before
    finally:
        gc.enable()
