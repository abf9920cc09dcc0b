"""Recomputed blocks: the gradients of blocks that are not, for whatever ComfyUI's blocks do to what they are given.

What ComfyUI's own models do is in test_battery.py; here are the things that they do, one by one. Where a block changes
its inputs, the expected gradients are those of the same computation written without that.
"""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ..pack import module

torch = pytest.importorskip("torch")
nn = torch.nn


def recompute() -> Any:
    return module("nodes.comfy_models.recompute")


class Block(nn.Module):  # type: ignore[misc, name-defined]
    """A trained layer, and a function of it and of what the block is given."""

    def __init__(self, function: Callable[..., Any], seed: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        for weight in self.layer.parameters():
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        self.function, self.runs = function, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self.function(self.layer, *args, **kwargs)


def outcome(
    function: Callable[..., Any], around: Callable[..., Any], *, recomputed: bool, dtype: Any = None
) -> tuple[Any, list[Any]]:
    """What `around(blocks, x)` gives, and the gradients of x and of three blocks' weights."""
    blocks = nn.ModuleList(Block(function, seed) for seed in range(3)).to(dtype or torch.float32)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(9)).to(dtype or torch.float32).requires_grad_()
    if recomputed:
        recompute().recompute_blocks(blocks, blocks)
        with recompute().mutable_saved():
            said = around(blocks, x * 1)
            said.float().square().mean().backward()
        assert [block.runs for block in blocks] == [2, 2, 2]
    else:
        said = around(blocks, x * 1)
        said.float().square().mean().backward()
    return said.detach(), [x.grad, *(weight.grad for weight in blocks.parameters())]


def check(
    changes: Callable[..., Any],
    plain: Callable[..., Any],
    around: Callable[..., Any],
    around_plain: Callable[..., Any] | None = None,
    dtype: Any = None,
) -> None:
    """Blocks that change their inputs, recomputed, against blocks that do not, by ordinary autograd."""
    expected, slopes = outcome(plain, around_plain or around, recomputed=False, dtype=dtype)
    found, ours = outcome(changes, around, recomputed=True, dtype=dtype)
    assert torch.equal(found, expected)
    for one, another in zip(ours, slopes, strict=True):
        torch.testing.assert_close(one, another)
        assert one.dtype == another.dtype


def in_turn(blocks: Any, x: Any) -> Any:
    for block in blocks:
        x = block(x)
    return x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_that_adds_to_its_input(dtype: str) -> None:
    def changes(layer: Any, x: Any) -> Any:
        x += layer(x).tanh()
        x.mul_(1.5)
        return x

    check(changes, lambda layer, x: (x + layer(x).tanh()) * 1.5, in_turn, dtype=getattr(torch, dtype))


def test_a_block_that_changes_nothing() -> None:
    check(lambda layer, x: layer(x).tanh(), lambda layer, x: layer(x).tanh(), in_turn)


def test_the_caller_goes_on_with_the_input_that_a_block_changed() -> None:
    """It need not look at the result, which may be nothing at all, and sees the same tensor if it does."""

    def changes(layer: Any, x: Any) -> None:
        x.add_(layer(x).tanh())

    def around(blocks: Any, x: Any) -> Any:
        for block in blocks:
            assert block(x) in (None, x)
        return x

    check(changes, lambda layer, x: x + layer(x).tanh(), around, in_turn)


def test_a_block_that_changes_a_view_of_what_its_caller_keeps() -> None:
    """As single blocks over text and picture do with parts of one tensor."""

    def changes(layer: Any, part: Any) -> Any:
        part += layer(part).tanh()
        return part

    def around(blocks: Any, x: Any) -> Any:
        x = x.clone()
        for number, block in enumerate(blocks):
            block(x[:, number : number + 2])
        return x

    def without(blocks: Any, x: Any) -> Any:
        for number, block in enumerate(blocks):
            x = torch.cat([x[:, :number], block(x[:, number : number + 2]), x[:, number + 2 :]], dim=1)
        return x

    check(changes, lambda layer, x: x + layer(x).tanh(), around, without)


def test_the_caller_changes_what_it_gave_and_what_it_got() -> None:
    """Control nets add to results in place; the input is reused as memory."""

    def around(blocks: Any, x: Any) -> Any:
        for block in blocks:
            y = block(x)
            x.zero_()
            y += 0.25
            x = y
        return x

    def without(blocks: Any, x: Any) -> Any:
        for block in blocks:
            x = block(x) + 0.25
        return x

    check(lambda layer, x: layer(x).sigmoid(), lambda layer, x: layer(x).sigmoid(), around, without)


@dataclasses.dataclass(frozen=True)
class Modulation:
    """As FLUX's blocks are given, with what does not count beside it."""

    scale: Any
    name: str = "scale"


class Slotted:
    __slots__ = ("shift",)

    def __init__(self, shift: Any) -> None:
        self.shift = shift


def test_tensors_within_arguments_and_results() -> None:
    """Tuples, dictionaries and objects; one tensor in two places is one tensor."""

    def function(layer: Any, streams: Any, *, given: dict[str, Any]) -> Any:
        picture, text = streams
        assert given["again"] is given["modulation"][0].scale
        assert given["modulation"][0].name == "scale"
        shifted = layer(picture * given["modulation"][0].scale + given["shift"].shift) + given["space"].value
        return {"picture": (shifted, [shifted.mean()]), "text": text, "number": 3}

    def around(blocks: Any, x: Any) -> Any:
        text = x.flip(0)
        for block in blocks:
            scale = text.sigmoid()
            given = {
                "modulation": [Modulation(scale)],
                "again": scale,
                "shift": Slotted(text * 0.1),
                "space": SimpleNamespace(value=x.mean()),
            }
            said = block((x, text), given=given)
            assert said["number"] == 3
            assert said["text"] is text
            x, (mean,) = said["picture"]
            x = x * mean
        return x

    check(function, function, around)


def test_a_block_sees_the_arguments_as_they_were() -> None:
    """Callers note in `transformer_options` which block is at work, and go on to the next before the backward pass."""

    def function(layer: Any, x: Any, options: dict[str, Any]) -> Any:
        options["seen"].append(options["block"])
        return layer(x) * (options["block"] + 1)

    def around(blocks: Any, x: Any) -> Any:
        options: dict[str, Any] = {"seen": []}
        for number, block in enumerate(blocks):
            options["block"] = number
            x = block(x, options)
        assert options["seen"] == [0, 1, 2]
        options["block"] = 7
        return x

    check(function, function, around)


def test_results_that_are_views_can_be_changed_in_place() -> None:
    def function(layer: Any, x: Any) -> Any:
        first, second = layer(x).chunk(2, dim=-1)
        return first, second, x[:, :1]

    def around(blocks: Any, x: Any, change: bool) -> Any:
        for block in blocks:
            first, second, start = block(x)
            if change:
                first += 1
                start *= 2
            else:
                first, start = first + 1, start * 2
            x = torch.cat([first, second * start[..., :2]], dim=-1)
        return x

    check(function, function, lambda blocks, x: around(blocks, x, True), lambda blocks, x: around(blocks, x, False))


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
    recompute().recompute_blocks(block, [block])
    with recompute().mutable_saved(), torch.autocast("cpu", dtype=torch.bfloat16):
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
            recompute().recompute_blocks(blocks, blocks)
        with recompute().mutable_saved():
            in_turn(blocks, torch.ones(2, 4)).sum().backward()
        return [block.layer.bias.grad for block in blocks]

    expected = gradients(plain, recomputed=False)
    for recomputed in (False, True):
        assert all(map(torch.equal, gradients(through_buffer, recomputed), expected))


def test_dropout_is_the_same_in_both_passes() -> None:
    adapters = module("trainer_core.adapters.adapter")
    config = module("trainer_core.config").AdapterConfig(rank=2, dropout=0.5)
    found = []
    for recomputed in (False, True):
        blocks = nn.ModuleList(Block(lambda layer, x: layer(x).tanh(), seed) for seed in range(2))
        adapter = adapters.Adapter(blocks, config, [r"\d\.layer"], 0)
        for layer in adapter.layers.values():
            layer.trained["lora_B.weight"].data += 0.3
        adapter.seed_dropout(5, 1, 2)
        if recomputed:
            recompute().recompute_blocks(blocks, blocks)
        with recompute().mutable_saved():
            in_turn(blocks, torch.ones(2, 5, 4)).square().mean().backward()
        found.append([weight.grad for weight in adapter.parameters()])
    assert all(torch.equal(one, another) for one, another in zip(*found, strict=True))
    assert all(one.any() for one in found[0])


def test_nothing_is_recomputed_where_nothing_needs_a_gradient() -> None:
    """Neither a pass without gradients nor blocks before the first trained layer; neither needs the context."""
    block = Block(lambda layer, x: layer(x))
    recompute().recompute_blocks(block, [block])
    with torch.no_grad():
        block(torch.ones(1, 4, requires_grad=True))
    block.requires_grad_(False)
    assert block(torch.ones(1, 4)).grad_fn is None
    assert block.runs == 2


def test_outside_the_context_it_says_so() -> None:
    block = Block(lambda layer, x: layer(x))
    recompute().recompute_blocks(block, [block])
    with pytest.raises(RuntimeError, match="inside mutable_saved"):
        block(torch.ones(1, 4))
    with recompute().mutable_saved():
        loss = block(torch.ones(1, 4)).sum()
    with pytest.raises(RuntimeError, match="inside the mutable_saved"):
        loss.backward()
    with recompute().mutable_saved(), pytest.raises(RuntimeError, match="inside the mutable_saved"):
        loss.backward()


def test_trained_values_that_cannot_be_seen_are_refused() -> None:
    """Their gradient would be lost without a word."""
    hidden = nn.Linear(4, 4)
    block = Block(lambda layer, x, get: layer(x) + get())
    recompute().recompute_blocks(block, [block])
    shift = hidden(torch.ones(1, 4))
    with recompute().mutable_saved():
        loss = block(torch.ones(1, 4), lambda: shift).sum()
        errors = module("trainer_core.errors")
        with pytest.raises(errors.TrainingError, match="cannot be looked into"):
            loss.backward()


def test_blocks_of_another_model_are_refused() -> None:
    """Such as those of the model in the graph, which must not be changed."""
    block, other = Block(len), Block(len)
    with pytest.raises(ValueError, match="another model"):
        recompute().recompute_blocks(block, [block, other])
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
    recompute().recompute_blocks(block, [block])
    gc.collect()
    before = calls()
    gc.disable()
    try:
        with recompute().mutable_saved():
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
