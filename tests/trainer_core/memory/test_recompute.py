"""Recomputed blocks: the gradients of blocks that are not, for whatever ComfyUI's blocks do to what they are given.

What ComfyUI's own models do is in test_battery.py; here are the things that they do, one by one. Where a block changes
its inputs, the expected gradients are those of the same computation written without that.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer_core.errors import TrainingError
from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.saved import mutable_saved

from .blocks import Block, check, in_turn


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


def test_a_block_that_changes_one_of_several_parts_of_a_tensor() -> None:
    """As shift and scale are parts of one result; parts with elements in common are refused."""

    def changes(layer: Any, x: Any, scale: Any) -> Any:
        x += layer(x) * scale
        return x

    def around(blocks: Any, x: Any) -> Any:
        for block in blocks:
            both = torch.cat([x, x.sigmoid()], dim=-1)
            x = block(both[..., :4], both[..., 4:])
        return x

    def without(blocks: Any, x: Any) -> Any:
        for block in blocks:
            x = block(x, x.sigmoid())
        return x

    check(changes, lambda layer, x, scale: x + layer(x) * scale, around, without)
    block = Block(changes)
    recompute_blocks(block, [block])
    x = torch.ones(3, 4)
    with mutable_saved(), pytest.raises(TrainingError, match="given twice"):
        block(x[:2], x[1:])


def test_tensors_of_the_model_itself_as_results() -> None:
    """They get no graph that would outlive the pass."""
    table = torch.ones(4)
    block = Block(lambda layer, x: (layer(x), table))
    recompute_blocks(block, [block])
    with mutable_saved():
        x, found = block(torch.ones(1, 4))
        (x * found).sum().backward()
    assert table.grad_fn is None
    assert not table.requires_grad
    assert block.layer.bias.grad.tolist() == [1, 1, 1, 1]


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
